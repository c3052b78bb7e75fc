"""The loss on test rows with demonstrations or preferences, at fixed noise and noise levels, under the reported weights."""

from collections.abc import Sequence

import torch
from accelerate.utils import gather_object
from torch import Tensor

from flow_factory.config import pipeline_kwargs
from flow_factory.data.given import GivenMedia, has_media
from flow_factory.distributed.collectives import in_step
from flow_factory.models.failures import named_rows
from flow_factory.training.context import TrainingContext
from flow_factory.training.given_rollouts import draws_targets, given_rollout
from flow_factory.types import Cond, Point, Row
from flow_factory.utils.errors import RowError
from flow_factory.utils.offload import to_device

REPORTED = ("loss", "margin", "pair_accuracy")


class HeldOut:
    """The held-out loss. Noise is keyed by row, so it does not depend on other rows or on the batch size.

    Args:
        context: the context of the run, restricted to this data set.
        rows: the rows of its test file.
        conds: their conditions, encoded for the evaluation. Media are resized to its resolution.
    """

    def __init__(self, context: TrainingContext, rows: Sequence[Row], conds: Sequence[Cond], name: str = ""):
        config, train, adapter = context.config, context.config.train, context.adapter
        self.context, self.rows, self.conds = context, rows, conds
        self.seed = config.eval_seed if draws_targets(train) else None
        call = pipeline_kwargs(config.eval)
        self.given = GivenMedia({name: config.data}, adapter, train.given, call)
        fixed = train.model_copy(update={"seed": config.eval_seed})
        self.algorithm = type(context.algorithm)(fixed, config.scheduler, adapter.times_per_sample)
        scales = {name: self.algorithm.guidance(name) for name in ("policy", *self.algorithm.weights)}
        self.calls = {name: call if s is None else adapter.with_guidance(call, s) for name, s in scales.items()}

    def __call__(self, indices: Sequence[int]) -> dict[str, float]:
        """Metric -> mean over these rows, of those with media; empty if there are none. All processes call this together."""
        context = self.context
        bring = [k for k in indices if has_media(self.rows[k], self.given.columns)]
        if not bring:
            return {}
        team, teams = context.config.model.context_parallel, context.config.teams
        mine = bring[context.accelerator.process_index // team :: teams]
        mine += bring[:1] * (-(-len(bring) // teams) - len(mine))  # forwards may be collective
        with torch.no_grad(), context.store.use(context.store.reported), context.engine.gathered():
            local = [(k, self._of_row(k)) for k in in_step(context.accelerator, context.interrupt, mine, len(mine))]
        every = [found for _, found in sorted(dict(gather_object(local)).items())]
        return {name: sum(found[name] for found in every) / len(every) for name in every[0]}

    def _of_row(self, k: int) -> dict[str, float]:
        context, row, size = self.context, self.rows[k], len(self.given.columns)
        cond = to_device(self.conds[k], context.accelerator.device)
        with named_rows([row], context.adapter, "encode", RowError):
            rollout = given_rollout(self.given, row, (cond, cond), row.id, 0, range(row.id * size, (row.id + 1) * size), self.seed)
        found = []
        for point in self.algorithm.points(rollout):
            for name in self.algorithm.weights:
                with context.store.use(name):
                    point.frozen[name] = self._velocity(point, name)
            found.append(self.algorithm.loss(point, self._kept_velocity)[1])
        return {name: float(torch.stack([m[name].mean() for m in found]).mean()) for name in REPORTED if name in found[0]}

    def _kept_velocity(self, point: Point, weights: str = "policy", guidance: float | None = None) -> Tensor:
        return self._velocity(point, "policy") if weights == "policy" else point.frozen[weights]

    def _velocity(self, point: Point, weights: str) -> Tensor:
        """The velocity of the weights that are in the model, with the guidance of the named ones."""
        return self.context.engine("velocity", point.x, point.t, point.s, point.cond, self.calls[weights], None)
