"""What is reported: the stock pipeline with its own scheduler, the averaged weights, and one fixed noise a row."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from flow_factory.config import RunConfig
from flow_factory.distributed import most_of_ranks
from flow_factory.engines import Engine
from flow_factory.frugal import moved
from flow_factory.models.base import ModelAdapter
from flow_factory.randomness import generator
from flow_factory.rewards.scoring import RewardSet
from flow_factory.terminal import bar
from flow_factory.trainer import call_of
from flow_factory.types import Cond, Row, Sample
from flow_factory.weights import WeightStore


@dataclass
class Evaluator:
    """Draws one picture a test row, always from the same noise, and scores it."""

    config: RunConfig
    accelerator: Accelerator
    adapter: ModelAdapter
    engine: Engine
    store: WeightStore
    rewards: RewardSet
    rows: Sequence[Row]
    conds: Sequence[Cond]
    scores: dict[str, list[float]] = field(default_factory=dict, init=False)
    """Of the last evaluation, by reward: every row's."""

    def run(self) -> tuple[dict[str, float], list[Sample]]:
        """Metrics over all rows, and on the main process the first rows' samples, `log.num_samples` of them.

        Other pictures stay where they were drawn and scored.
        """
        mine: list[tuple[int, Any]] = []
        batches = list(self.batches())
        idle = most_of_ranks(self.accelerator, len(batches)) - len(batches) if self.engine.collective else 0
        with torch.no_grad(), self.store.use(self.store.reported):
            for batch in bar(batches, "evaluating", shown=self.accelerator.is_main_process, delay=5):
                mine += zip(batch, self._draw(batch), strict=True)
            for _ in range(idle):  # the others' forwards need this process
                self._draw([0])
        if self.accelerator.process_index % self.config.model.context_parallel:
            mine = []  # the first process of the team has the same
        scores = self.rewards.score([self.rows[i] for i, _ in mine], [[media] for _, media in mine])
        shown = self.config.log.num_samples
        everyone = gather_object([(i, media if i < shown else None, s[0].tolist()) for (i, media), s in zip(mine, scores, strict=True)])
        everyone.sort(key=lambda e: e[0])
        table = torch.tensor([s for _, _, s in everyone], dtype=torch.float64)
        self.scores = dict(zip(self.rewards.names, table.T.tolist(), strict=True)) if len(table) else {}
        samples = [Sample(self.rows[i].prompt, m, dict(zip(self.rewards.names, s, strict=True))) for i, m, s in everyone[:shown]]
        return self._metrics(table) | {f"eval/{k}": v for k, v in self.rewards.finish_epoch().items()}, samples

    def batches(self) -> Iterator[list[int]]:
        """This process's rows, those together whose conditions can share a call."""
        mine = range(self.accelerator.process_index // self.config.model.context_parallel, len(self.rows), self.config.teams)
        size = self.config.eval.per_device_batch_size
        for _, group in groupby(sorted(mine, key=self._key), key=self._key):
            indices = list(group)
            yield from (indices[k : k + size] for k in range(0, len(indices), size))

    def _key(self, index: int) -> str:
        key = self.adapter.joinable(self.conds[index])
        return f"row {index} alone" if key is None else repr(key)

    def _draw(self, batch: list[int]) -> list[Any]:
        section = self.config.eval
        cond = moved(self.adapter.join([self.conds[i] for i in batch]), self.accelerator.device)
        seed = self.config.train.seed if section.seed is None else section.seed
        generators = [generator(seed, "eval", self.rows[i].id) for i in batch]
        return list(self.engine("evaluate", cond, call_of(section), section.num_inference_steps, generators))

    def _metrics(self, table: Tensor) -> dict[str, float]:
        out = {}
        for k, name in enumerate(self.rewards.names):
            column = table[:, k]
            out[f"eval/reward_{name}_mean"] = column.nanmean().item()
            out[f"eval/reward_{name}_std"] = column[~column.isnan()].std(correction=0).item()
        out["eval/reward_mean"] = sum(
            w * out[f"eval/reward_{n}_mean"] for w, n in zip(self.rewards.weights, self.rewards.names, strict=True)
        )
        return out
