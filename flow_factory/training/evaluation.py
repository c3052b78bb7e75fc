"""Evaluation: the stock pipeline with its own scheduler, the averaged weights, and fixed noise for each sample of a row."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from typing import Any, NamedTuple

import torch
from accelerate.utils import gather_object
from torch import Tensor

from flow_factory.config import pipeline_kwargs
from flow_factory.core.randomness import generator
from flow_factory.core.ranking import spearman
from flow_factory.data.encoding_windows import rows_evaluated
from flow_factory.data.row_content import content_of
from flow_factory.data.thumbnails import condition_pictures
from flow_factory.distributed.collectives import all_or_none, exchange, on_any_rank
from flow_factory.models.failures import named_rows
from flow_factory.reporting.packed_media import PackedMedia, packed
from flow_factory.rewards.scoring import RewardSet
from flow_factory.rewards.stream import ScoringStream
from flow_factory.training.context import TrainingContext
from flow_factory.training.held_out import HeldOut
from flow_factory.types import Cond, Row, Sample
from flow_factory.utils.errors import RowError
from flow_factory.utils.offload import to_device
from flow_factory.utils.terminal import bar

Scored = tuple[int, list[list[float]], Any]
"""(row, scores (n, R) of its samples, its first sample if it is logged: a `PackedMedia` unless this is the main process)."""
Submitted = tuple[list[int], list[Any], ScoringStream]
"""(rows, the logged sample of each, the scores of all their samples, which may still be pending)."""
WAITING = 64
"""The largest number of samples that wait for others whose conditions can share a call."""


class SampleRequest(NamedTuple):
    """A sample to be drawn: its row, and its number in the row."""

    row: int
    member: int
    cond: Cond


@dataclass
class Evaluator:
    """Draws and scores `eval.group_size` samples for each test row, always of the same rows and from the same noise."""

    context: TrainingContext
    """The context of the run, restricted to this data set."""
    rewards: RewardSet
    """The rewards that score this data set: those of `eval_rewards`, or of `rewards` without it."""
    rows: Sequence[Row]
    """The rows of the data set's test split."""
    conds: Sequence[Cond]
    name: str = ""
    """The name of the data set; "" if there is only one."""
    scores: dict[str, list[float]] = field(default_factory=dict, init=False)
    """Reward -> its score of each row in the last evaluation."""
    held_out: HeldOut | None = field(init=False)
    """The held-out loss, if test rows have demonstrations or preferences."""
    usual: Sequence[int] = field(init=False)
    """The rows of a usual evaluation."""
    taken: Sequence[int] = field(init=False)
    """The rows of the last evaluation."""
    _contents: dict[int, str] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        given = bool(self.context.config.train.given)
        self.held_out = HeldOut(self.context, self.rows, self.conds, self.name) if given else None
        self.usual = self.taken = rows_evaluated(self.context.config, len(self.rows))

    def run(self, full: bool = False) -> tuple[dict[str, float], list[Sample]]:
        """Metrics over all samples; and on the main process the first samples of the first `log.num_samples` rows.

        All other samples stay on the process that drew them, and are freed as soon as they are scored.

        Args:
            full: whether to evaluate all rows. Their metrics are `eval_full/`, in addition to those of the usual rows.

        Raises:
            Interrupted: any process got a signal. All agree on it after each batch.
            UserError: a reward failed, see `all_or_none`; or the pipeline failed on a row.
        """
        held_out = self.held_out(self.usual) if self.held_out is not None else {}
        shown = self.usual[: self.context.config.log.num_samples]
        self.taken = shown if not self.rewards.names else range(len(self.rows)) if full else self.usual
        mine = self._scored(self.taken) if self.taken else []
        everyone: list[tuple[int, list[list[float]]]] = sorted(gather_object([(row, scores) for row, scores, _ in mine]))
        table = torch.tensor([scores for _, scores in everyone], dtype=torch.float64)  # (rows, group_size, R)
        names, usual = self.rewards.names, set(self.usual)
        self.scores = dict(zip(names, table.nanmean(1).T.tolist(), strict=True)) if names else {}
        come = exchange(self.context.accelerator, {0: [(row, media) for row, _, media in mine if media is not None]})
        media = sorted(
            ((k, m.opened() if isinstance(m, PackedMedia) else m) for some in come.values() for k, m in some), key=lambda e: e[0]
        )
        scores = dict(everyone)
        samples = [
            Sample(
                self.rows[k].prompt,
                m,
                dict(zip(names, scores[k][0], strict=True)),
                conditions=condition_pictures(self.rows[k]),
                row=self._named(k),
            )
            for k, m in media
        ]
        within = f"/{self.name}" if self.name else ""
        report = {f"eval{within}/{k}": v for k, v in self.rewards.finish_epoch().items() if k.startswith("seconds/")}
        metrics = self._metrics(f"eval{within}", table[[k for k, (row, _) in enumerate(everyone) if row in usual]])
        if len(usual) < len(everyone):
            metrics |= self._metrics(f"eval_full{within}", table)
        metrics |= {f"eval{within}/{name}": value for name, value in held_out.items()}
        return metrics | report, samples

    def contents(self, rows: Sequence[int]) -> list[str]:
        """The `content_of` each of these rows, with the settings with which it is drawn; found once a start."""
        config, section = self.context.config, self.context.config.eval
        settings = [config.eval_seed, section.group_size, section.num_inference_steps, pipeline_kwargs(section)]
        return [self._contents.get(k) or self._contents.setdefault(k, content_of(self.rows[k], settings)) for k in rows]

    def _named(self, row: int) -> str:
        """See `Sample.row`. The noise of a row is keyed by its number."""
        return f"{self.name}:{row}:{self.contents([row])[0]}"

    def _scored(self, rows: Sequence[int]) -> list[Scored]:
        """Draws and scores this process's share of the rows."""
        submitted: list[Submitted] = []
        waiting: dict[int, list[Any]] = {}
        unchanged = (self.rows[row] for row in self.share(rows))  # a line may have been edited
        context, together = self.context, partial(all_or_none, self.context.accelerator, self.context.interrupt)
        together(lambda: all(unchanged))
        batches, more = self.batches(rows), True
        with torch.no_grad(), context.store.use(context.store.reported), context.engine.gathered(), self.rewards.dropping():
            coming = next(batches, [])
            while more:
                batch, coming = coming, next(batches, [])
                for item, media in zip(batch, self._draw(batch), strict=True):
                    waiting.setdefault(item.row, []).append(media)
                enough = not coming or sum(map(len, waiting.values())) >= self.rewards.batch
                submitted += together(partial(self._submit, waiting if enough else {}, submitted))
                context.meter.step("batch")
                more = on_any_rank(context.accelerator, bool(coming))
            return together(lambda: [scored for part in submitted for scored in self._answers(*part)])

    @property
    def shares(self) -> list[int]:
        """The number of rows of each process."""
        config = self.context.config
        teams, team = config.teams, config.model.context_parallel
        return [len(range(process // team, len(self.taken), teams)) for process in range(self.context.accelerator.num_processes)]

    def _submit(self, waiting: dict[int, list[Any]], before: Sequence[Submitted]) -> list[Submitted]:
        """Requests the scores of the rows that are drawn completely, and removes these rows from `waiting`."""
        for _, _, stream in before:
            stream.check()
        config, accelerator = self.context.config, self.context.accelerator
        whole = [row for row, media in waiting.items() if len(media) == config.eval.group_size]
        groups = [waiting.pop(row) for row in whole]
        if not whole or accelerator.process_index % config.model.context_parallel:
            return []  # the first process of the team does this
        shown, pack = self.usual[: config.log.num_samples], (lambda m: m) if accelerator.is_main_process else packed
        stream = self.rewards.stream(self.context.interrupt.look)
        stream.add([self.rows[row] for row in whole], groups, last=True)
        return [(whole, [pack(group[0]) if row in shown else None for row, group in zip(whole, groups, strict=True)], stream)]

    def _answers(self, rows: Sequence[int], shown: Sequence[Any], stream: ScoringStream) -> list[Scored]:
        """Waits for the scores."""
        tables = stream.scores().split(self.context.config.eval.group_size)
        return [(row, table.tolist(), media) for row, media, table in zip(rows, shown, tables, strict=True)]

    def share(self, rows: Sequence[int]) -> Sequence[int]:
        """This process's share of the rows."""
        config = self.context.config
        return rows[self.context.accelerator.process_index // config.model.context_parallel :: config.teams]

    def batches(self, rows: Sequence[int]) -> Iterator[list[SampleRequest]]:
        """Batches of this process's samples of these rows. Their conditions can share a call, and each condition is read once."""
        config, main = self.context.config, self.context.accelerator.is_main_process
        size, n = config.eval.per_device_batch_size, config.eval.group_size
        waiting: dict[str, list[SampleRequest]] = {}
        for row in bar(self.share(rows), "evaluating", "row", main, delay=5, times=config.teams):
            cond = self.conds[row]
            key = self.context.adapter.joinable(cond) if size > 1 else None
            alike = waiting.setdefault(repr(key), [])
            alike += [SampleRequest(row, member, cond) for member in range(n)]
            while len(alike) >= size or (alike and key is None):
                yield alike[:size]
                del alike[:size]
            if sum(map(len, waiting.values())) > WAITING + size:
                yield waiting.pop(max(waiting, key=lambda k: len(waiting[k])))
        yield from filter(None, waiting.values())

    def _draw(self, batch: Sequence[SampleRequest]) -> list[Any]:
        """The media of a batch. A process without samples takes part in the others' forwards."""
        context, section = self.context, self.context.config.eval
        if not batch:
            first = self.taken[0]
            return self._draw([SampleRequest(first, 0, self.conds[first])])[:0] if context.engine.collective else []
        cond = to_device(context.adapter.together([item.cond for item in batch]), context.accelerator.device)
        rows = [self.rows[item.row] for item in batch]
        keys = [(row.id, *([item.member] if item.member else [])) for row, item in zip(rows, batch, strict=True)]
        generators = [generator(context.config.eval_seed, "eval", *key) for key in keys]
        with named_rows(rows, context.adapter, "draw", RowError):
            return list(context.engine("evaluate", cond, pipeline_kwargs(section), section.num_inference_steps, generators))

    def _metrics(self, where: str, table: Tensor) -> dict[str, float]:
        """The metrics of scores (rows, group_size, R)."""
        out: dict[str, float] = {f"{where}/rows": len(table)}
        for name, column in zip(self.rewards.names, table.flatten(0, 1).T, strict=True):
            known = column[~column.isnan()]
            out[f"{where}/reward_{name}_mean"] = known.mean().item()
            out[f"{where}/reward_{name}_std"] = known.std(correction=0).item()
            out[f"{where}/missing/{name}"] = int(column.isnan().sum())
        if self.rewards.names:
            means = [w * out[f"{where}/reward_{n}_mean"] for w, n in zip(self.rewards.weights, self.rewards.names, strict=True)]
            out[f"{where}/reward_mean"] = sum(means)
        for a, b in combinations(range(len(self.rewards.names)), 2):
            if (likeness := spearman(table[..., a].flatten(), table[..., b].flatten())) is not None:
                out[f"{where}/correlation/{self.rewards.names[a]}/{self.rewards.names[b]}"] = likeness
        return out
