"""What is reported: the stock pipeline with its own scheduler, the averaged weights, and fixed noise for each sample of a row."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from flow_factory.config import RunConfig, pipeline_kwargs
from flow_factory.distributed import all_or_none, most_of_ranks
from flow_factory.engines import Engine
from flow_factory.errors import RowError
from flow_factory.frugal import moved
from flow_factory.interrupt import Interrupt
from flow_factory.models.base import ModelAdapter
from flow_factory.models.failures import named_rows
from flow_factory.randomness import generator
from flow_factory.rewards.scoring import RewardSet
from flow_factory.terminal import bar
from flow_factory.types import Cond, Row, Sample
from flow_factory.weights import WeightStore

Scored = tuple[int, Any, list[list[float]]]
"""A row, its first sample where it is shown, and the scores of all its samples (n, R)."""


@dataclass
class Evaluator:
    """Draws `eval.group_size` pictures a test row, always from the same noise, and scores them."""

    config: RunConfig
    accelerator: Accelerator
    adapter: ModelAdapter
    engine: Engine
    store: WeightStore
    rewards: RewardSet
    rows: Sequence[Row]
    conds: Sequence[Cond]
    interrupt: Interrupt = field(default_factory=Interrupt)
    told: Callable[[], None] = lambda: None
    """Called after each batch."""
    scores: dict[str, list[float]] = field(default_factory=dict, init=False)
    """Of the last evaluation, by reward: every row's."""
    keys: dict[int, str] = field(default_factory=dict, init=False)
    """Rows of the same one can share a call. Known after the first evaluation: a row's whole condition is read for it."""
    held: dict[int, Cond] = field(default_factory=dict, init=False)
    """Of the batch that was drawn last: the next one may be of the same row."""

    def run(self) -> tuple[dict[str, float], list[Sample]]:
        """Metrics over all samples, and on the main process the first ones of the first rows, `log.num_samples` of them.

        Other pictures stay where they were drawn, and are let go as soon as they are scored.

        Raises:
            Interrupted: a signal has come, of which all processes know after each batch.
            UserError: a reward failed, see `all_or_none`; or the pipeline did, on a row.
        """
        mine: list[Scored] = []
        waiting: dict[int, list[Any]] = {}
        batches = list(self.batches())
        unchanged = (self.rows[row] for batch in batches for row, _ in batch)  # a line may have been edited
        all_or_none(self.accelerator, self.interrupt, lambda: all(unchanged))
        rounds = range(most_of_ranks(self.accelerator, len(batches)))
        with torch.no_grad(), self.store.use(self.store.reported), self.engine.gathered():
            for number in bar(rounds, "evaluating", shown=self.accelerator.is_main_process, delay=5):
                batch = batches[number] if number < len(batches) else []
                for (row, _), media in zip(batch, self._draw(batch), strict=True):
                    waiting.setdefault(row, []).append(media)
                self.told()
                last = number == rounds[-1]
                enough = last or sum(map(len, waiting.values())) >= self.rewards.batch
                mine += all_or_none(self.accelerator, self.interrupt, partial(self._score, waiting if enough else {}))
        self.held = {}
        everyone: list[Scored] = gather_object(mine)
        everyone.sort(key=lambda e: e[0])
        table = torch.tensor([s for _, _, scores in everyone for s in scores], dtype=torch.float64)
        by_row = table.unflatten(0, (len(everyone), -1)).nanmean(1) if table.numel() else table
        self.scores = dict(zip(self.rewards.names, by_row.T.tolist(), strict=True)) if table.numel() else {}
        shown = everyone[: self.config.log.num_samples]
        samples = [Sample(self.rows[i].prompt, m, dict(zip(self.rewards.names, s[0], strict=True))) for i, m, s in shown]
        return self._metrics(table) | {f"eval/{k}": v for k, v in self.rewards.finish_epoch().items()}, samples

    @property
    def shares(self) -> list[int]:
        """How many rows each process has."""
        teams, team = self.config.teams, self.config.model.context_parallel
        return [len(range(process // team, len(self.rows), teams)) for process in range(self.accelerator.num_processes)]

    def _score(self, waiting: dict[int, list[Any]]) -> "list[Scored]":
        """Scores the rows all of whose samples are drawn, and takes them out of those that wait."""
        whole = [row for row, media in waiting.items() if len(media) == self.config.eval.group_size]
        groups = [waiting.pop(row) for row in whole]
        if self.accelerator.process_index % self.config.model.context_parallel:
            return []  # the first process of the team has the same
        tables = self.rewards.score([self.rows[row] for row in whole], groups)
        shown = self.config.log.num_samples
        return [(i, g[0] if i < shown else None, t.tolist()) for i, g, t in zip(whole, groups, tables, strict=True)]

    def batches(self) -> Iterator[list[tuple[int, int]]]:
        """This process's (row, sample of it), those together whose conditions can share a call."""
        mine = range(self.accelerator.process_index // self.config.model.context_parallel, len(self.rows), self.config.teams)
        size = self.config.eval.per_device_batch_size
        together = [mine] if size == 1 else (group for _, group in groupby(sorted(mine, key=self._key), key=self._key))
        for group in together:
            indices = [(row, member) for row in group for member in range(self.config.eval.group_size)]
            yield from (indices[k : k + size] for k in range(0, len(indices), size))

    def _key(self, index: int) -> str:
        if index not in self.keys:
            key = self.adapter.joinable(self.conds[index])
            self.keys[index] = f"row {index} alone" if key is None else repr(key)
        return self.keys[index]

    def _draw(self, batch: list[tuple[int, int]]) -> list[Any]:
        """Their media; a process that has none left draws what the others' forwards need it for."""
        if not batch:
            return self._draw([(0, 0)])[:0] if self.engine.collective else []
        section = self.config.eval
        self.held = {row: self.held[row] if row in self.held else self.conds[row] for row in dict(batch)}
        cond = moved(self.adapter.join([self.held[row] for row, _ in batch]), self.accelerator.device)
        seed = self.config.train.seed if section.seed is None else section.seed
        rows = [self.rows[row] for row, _ in batch]
        generators = [generator(seed, "eval", row.id, *([k] if k else [])) for row, (_, k) in zip(rows, batch, strict=True)]
        with named_rows(rows, self.adapter, "draw", RowError):
            return list(self.engine("evaluate", cond, pipeline_kwargs(section), section.num_inference_steps, generators))

    def _metrics(self, table: Tensor) -> dict[str, float]:
        out: dict[str, float] = {}
        if not self.rewards.names:
            return out
        for k, name in enumerate(self.rewards.names):
            column = table[:, k]
            out[f"eval/reward_{name}_mean"] = column.nanmean().item()
            out[f"eval/reward_{name}_std"] = column[~column.isnan()].std(correction=0).item()
        out["eval/reward_mean"] = sum(
            w * out[f"eval/reward_{n}_mean"] for w, n in zip(self.rewards.weights, self.rewards.names, strict=True)
        )
        return out
