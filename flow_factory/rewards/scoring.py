"""Calls the rewards of a run on groups of samples. A failed score is missing and counted; it never becomes a number."""

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from flow_factory import presence
from flow_factory.blame import blamed
from flow_factory.errors import RewardError, UserError, of_all
from flow_factory.hparams import RewardArguments
from flow_factory.rewards.answers import AnswerError, scores_of
from flow_factory.rewards.inputs import Sample, arguments, samples_of
from flow_factory.rewards.loading import Judge, compares, load_judges
from flow_factory.rewards.peace import kept, within
from flow_factory.types import Row

logger = logging.getLogger(__name__)


def load_rewards(
    train: Sequence[RewardArguments],
    evaluation: Sequence[RewardArguments] | None,
    accelerator: Accelerator,
    eval_group_size: int | None = None,
) -> tuple["RewardSet", "RewardSet"]:
    """(training rewards, evaluation rewards); None evaluates with the training rewards. See `load_judges`.

    Args:
        eval_group_size: samples of a row in an evaluation; groupwise rewards, which compare several, are left out of it at 1.

    Raises:
        UserError: two entries share a name.
    """
    evaluation = train if evaluation is None else evaluation
    if eval_group_size == 1:
        evaluation = [entry for entry in evaluation if not compares(entry)]
    judges = load_judges(train, evaluation, accelerator)
    return RewardSet(judges[0], accelerator), RewardSet(judges[1], accelerator)


@dataclass
class Counts:
    """Of each reward since the last report."""

    asked: Counter[str] = field(default_factory=Counter)
    missing: Counter[str] = field(default_factory=Counter)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    told: Counter[str] = field(default_factory=Counter)
    """How often it said what went wrong; `cause`: what it said last."""
    cause: dict[str, str] = field(default_factory=dict)


class RewardSet:
    """The rewards of one purpose, training or evaluation. See `load_rewards`.

    Attributes:
        names, weights: of the R rewards, in the order of the columns of scores.
    """

    def __init__(self, judges: Sequence[Judge], accelerator: Accelerator):
        self.judges, self.accelerator = tuple(judges), accelerator
        self.names = tuple(j.name for j in judges)
        self.weights = tuple(j.config.weight for j in judges)
        if twice := [name for name, count in Counter(self.names).items() if count > 1]:
            raise UserError(f"two rewards are named {twice[0]!r}; give each its own name")
        self.counts = Counts()

    @property
    def groupwise(self) -> bool:
        """Whether any reward sees a group at a time."""
        return any(judge.groupwise for judge in self.judges)

    @property
    def batch(self) -> int:
        """Samples that fill a call of every pointwise reward."""
        return max((judge.config.batch_size for judge in self.judges), default=1)

    def check_columns(self, rows: Sequence[Row]) -> None:
        """See `Needs.require_columns`: to be called when the data set is read."""
        for row in rows:
            for judge in self.judges:
                judge.needs.require_columns(row)

    def score(self, rows: Sequence[Row], media: Sequence[Sequence[Any]], look: Callable[[], None] = lambda: None) -> list[Tensor]:
        """Scores of whole groups: for each row an (n, R) float32 tensor on the CPU, NaN where a score is missing. See `Asking.add`."""
        asking = self.asking(look)
        asking.add(rows, media, last=True)
        return list(asking.scores().split([len(group) for group in media])) if media else []

    def asking(self, look: Callable[[], None] = lambda: None) -> "Asking":
        """For samples that come one after the other."""
        return Asking(self, look)

    def next_scores(
        self, judge: Judge, waiting: list[Sample], groups: Sequence[list[Sample]], last: bool, look: Callable[[], None], counts: Counts
    ) -> list[Tensor]:
        """Those of one reward's next calls, whose samples are taken out of those that wait for them, and counted; see `Asking`."""
        presence.doing(f"scoring with {judge.name!r}")
        start, size = time.perf_counter(), judge.config.batch_size
        if not judge.groupwise:
            waiting += [sample for group in groups for sample in group]
            full = len(waiting) if last else len(waiting) // size * size
            groups = [waiting[k : min(k + size, full)] for k in range(0, full, size)]
            del waiting[:full]
        scores = [self._call(judge, batch, look, counts) for batch in groups]
        counts.seconds[judge.name] += time.perf_counter() - start
        counts.asked[judge.name] += sum(map(len, scores))
        counts.missing[judge.name] += sum(int(s.isnan().sum()) for s in scores)
        return scores

    def _call(self, judge: Judge, batch: Sequence[Sample], look: Callable[[], None], counts: Counts) -> Tensor:
        look()
        given = arguments(judge, batch)
        rows = ", ".join(str(k) for k in sorted({s.row.id for s in batch}))
        doing = f"reward {judge.name!r} failed on {len(batch)} sample{'s' * (len(batch) != 1)} of row {rows}"
        module, limit = type(judge.model).__module__, judge.config.max_seconds
        with kept(), blamed(doing, module):
            output = within(limit, lambda: judge.model(**given), doing, module)
        try:
            scores, said = scores_of(output, len(batch))
        except AnswerError as error:
            raise RewardError(f"reward {judge.name!r} {error}") from error
        if said:
            counts.cause[judge.name] = said
            counts.told[judge.name] += 1
        return scores

    def finish_epoch(self) -> dict[str, float]:
        """Missing scores and seconds of each reward since the last call, over all processes (so all must call); then counts from 0.

        Returns:
            `missing/<name>`, a count, and `seconds/<name>`, the mean over processes.

        Raises:
            RewardError: a reward missed more than its `max_missing`.
        """
        if not self.names:
            return {}
        mine, self.counts = self.counts, Counts()
        local = [[mine.asked[n], mine.missing[n], mine.seconds[n], mine.told[n]] for n in self.names]
        total = self.accelerator.reduce(torch.tensor(local, dtype=torch.float32, device=self.accelerator.device), reduction="sum")
        causes = {k: v for one in gather_object([mine.cause]) for k, v in one.items()} if total[:, 3].any() else {}
        report: dict[str, float] = {}
        for judge, (asked, missing, seconds, told) in zip(self.judges, total.tolist(), strict=True):
            name, most = judge.name, judge.config.max_missing
            if told:
                logger.warning("reward %r said what went wrong %.0f times in these %.0f samples, last: %s", name, told, asked, causes[name])
            if missing > most * asked:
                cause = f"; it said last: {causes[name]}" if name in causes else ""
                few = f"at most {most:.0%} may be missing{cause}"
                raise of_all(RewardError(f"reward {name!r} gave no score for {missing:.0f} of {asked:.0f} samples; {few}"))
            report |= {f"missing/{name}": missing, f"seconds/{name}": seconds / self.accelerator.num_processes}
        return report


class Asked(NamedTuple):
    """What is known of the samples that came; not changed, but exchanged for another."""

    waiting: list[list[Sample]]
    """Of each reward, the last samples, of which it has not been asked yet."""
    found: list[list[Tensor]]
    """Of each reward, the scores of those before."""
    samples: int


class Asking:
    """Scores of samples that come group by group. Every reward is called as if all came at once: a groupwise one with a group, any other
    with `batch_size` samples in the order in which they come, and with what is left at the end. What all have seen is let go of.

    Args:
        look: called before each call of a reward; what it raises ends the asking.
    """

    def __init__(self, rewards: RewardSet, look: Callable[[], None]):
        self.rewards, self.look = rewards, look
        self.asked = Asked([[] for _ in rewards.judges], [[] for _ in rewards.judges], 0)

    @torch.no_grad()
    def add(self, rows: Sequence[Row], media: Sequence[Sequence[Any]], last: bool) -> None:
        """The next groups; where this raises, nothing was asked.

        Args:
            rows: one a group. Their condition files are opened for the rewards that take them.
            media: each group's images or videos: all of it where a reward is groupwise.
            last: no more will come.

        Raises:
            RewardError: a reward raised, took longer than its `max_seconds`, or returned something else than one score a sample.
            UserError: a reward does not score this kind of media, lacks a condition that it requires, or a condition file is damaged.
        """
        groups = [samples_of(row, group) for row, group in zip(rows, media, strict=True)]
        asked = Asked([[*w] for w in self.asked.waiting], [[*f] for f in self.asked.found], self.asked.samples + sum(map(len, groups)))
        counts = deepcopy(self.rewards.counts)
        for judge, waiting, found in zip(self.rewards.judges, asked.waiting, asked.found, strict=True):
            found += self.rewards.next_scores(judge, waiting, groups, last, self.look, counts)
        self.asked, self.rewards.counts = asked, counts

    def scores(self) -> Tensor:
        """(N, R) float32 on the CPU of all samples that came, once the last has come; NaN where a score is missing."""
        columns = [torch.cat(found) for found in self.asked.found if found]
        return torch.stack(columns, dim=1) if columns else torch.empty(self.asked.samples, len(self.asked.found))
