"""The stock pipeline of a run's evaluations, with the weights of the base model or a checkpoint, for `ff-generate` and `ff-eval`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import accelerate
import torch

from flow_factory.checkpoints.stock import put_weights
from flow_factory.config import EvalConfig, RunConfig, pipeline_kwargs
from flow_factory.models.failures import named_rows
from flow_factory.models.loading import family_of, load_adapter
from flow_factory.policy.attention import without_cudnn
from flow_factory.runs.fitting import checkpoint_of
from flow_factory.types import Cond, Row
from flow_factory.utils.errors import UserError
from flow_factory.utils.offload import to_cpu, to_device
from flow_factory.utils.terminal import hide_bars

Work = TypeVar("Work")


class StockPipeline:
    """The base model of a config, in evaluation mode.

    Args:
        device: the name of the device; None for the first accelerator.
        offload: whether components stay in main memory until they are called.

    Raises:
        UserError: the model does not load, or there is no accelerator to offload from.
    """

    def __init__(self, config: RunConfig, device: str | None = None, offload: bool = False):
        hide_bars()
        without_cudnn()
        self.config = config
        self.device = torch.device(device) if device else accelerate.PartialState().device
        if offload and self.device.type == "cpu":
            raise UserError("--offload: there is no accelerator to move parts to; leave it out")
        name, kind, overrides, pipeline = checkpoint_of(config)
        self.adapter = load_adapter(name, kind, config.mixed_precision, None, overrides, pipeline)
        if offload:
            self.adapter.pipe.enable_model_cpu_offload(device=self.device)
        else:
            self.adapter.pipe.to(self.device)

    @staticmethod
    def require_rows(config: RunConfig, rows: Sequence[Row]) -> None:
        """Needs no weights.

        Raises:
            UserError: a row has not the condition images or videos that the model takes; or there is no such model.
        """
        name, kind, _, pipeline = checkpoint_of(config)
        family = family_of(name, kind, pipeline)
        for row in rows:
            family.check_row(row)

    def take(self, checkpoint: Path | None) -> None:
        """Loads these weights; None stands for the base model's, which must come first.

        Raises:
            CheckpointError: see `put_weights`.
        """
        if checkpoint is not None:
            put_weights(self.adapter.pipe, checkpoint, self.config.model.target_components)
            for part in self.config.model.target_components:
                getattr(self.adapter.pipe, part).eval()

    @torch.no_grad()
    def encoded(self, rows: Sequence[Row], section: EvalConfig) -> list[Cond]:
        """The conditions of the rows, on the CPU.

        Raises:
            UserError: the pipeline does not support this image size, or cannot encode a row.
        """
        call, conds = pipeline_kwargs(section), []
        self.adapter.check_call(call)
        for row in rows:
            with named_rows([row], self.adapter, "encode", UserError):
                conds.append(to_cpu(self.adapter.encode(row, call)))
        return conds

    def batches(self, work: Sequence[Work], size: int, cond: Callable[[Work], Cond]) -> list[list[Work]]:
        """Batches of at most `size` whose conditions can share a call: of several rows if possible, else of one row."""
        alike: dict[str, list[Work]] = {}
        for one in work:
            key = self.adapter.joinable(found := cond(one))
            alike.setdefault(repr(key) if key is not None else f"alone {id(found)}", []).append(one)
        return [some[k : k + size] for some in alike.values() for k in range(0, len(some), size)]

    def draw(self, rows: Sequence[Row], conds: Sequence[Cond], section: EvalConfig, noise: list[torch.Generator]) -> list[Any]:
        """An image or `Clip` for each row, from its condition and the noise of its generator; see `batches`.

        Raises:
            UserError: the pipeline cannot draw a row.
        """
        cond = to_device(self.adapter.together(conds), self.device)
        with named_rows(rows, self.adapter, "draw", UserError):
            return self.adapter.evaluate(cond, pipeline_kwargs(section), section.num_inference_steps, noise)
