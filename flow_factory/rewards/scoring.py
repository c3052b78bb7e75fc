"""Calls the rewards of a run on groups of samples. A failed score is missing and counted; it never becomes a number."""

import logging
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from flow_factory.distributed import liveness
from flow_factory.hparams import RewardArguments
from flow_factory.rewards.answers import AnswerError, scores_of
from flow_factory.rewards.inputs import Sample, arguments, samples_of
from flow_factory.rewards.lanes import AHEAD, answered, has_answer, lanes_of
from flow_factory.rewards.loading import Judge, compares, load_judges
from flow_factory.rewards.peace import kept, within
from flow_factory.types import Row
from flow_factory.utils.errors import RewardError, UserError, of_all
from flow_factory.utils.user_code import blamed

logger = logging.getLogger(__name__)

OFTEN = 0.2
"""Seconds between two looks for signals and for other processes while calls are waited for."""


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


class Answer(NamedTuple):
    """Of one call."""

    scores: Tensor
    """(n,) float32 on the CPU, NaN where one is missing."""
    said: str
    """What went wrong; "" where nothing did."""
    seconds: float


def ask(judge: Judge, batch: Sequence[Sample]) -> Answer:
    """One call of a reward; for what it raises see `Asking.add`."""
    start = time.perf_counter()
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
    return Answer(scores, said, time.perf_counter() - start)


def next_calls(judge: Judge, waiting: list[Sample], groups: Sequence[list[Sample]], last: bool) -> list[list[Sample]]:
    """The samples of each of a reward's next calls, which are taken out of those that wait for them; see `Asking`."""
    if judge.groupwise:
        return [*groups]
    waiting += [sample for group in groups for sample in group]
    size = judge.config.batch_size
    full = len(waiting) if last else len(waiting) // size * size
    calls = [waiting[k : min(k + size, full)] for k in range(0, full, size)]
    del waiting[:full]
    return calls


class RewardSet:
    """The rewards of one purpose, training or evaluation. See `load_rewards`.

    Attributes:
        names, weights: of the R rewards, in the order of the columns of scores.
        lanes: of those that are asked beside the sampling, see `lanes_of`.
    """

    def __init__(self, judges: Sequence[Judge], accelerator: Accelerator):
        self.judges, self.accelerator = tuple(judges), accelerator
        self.names = tuple(j.name for j in judges)
        self.weights = tuple(j.config.weight for j in judges)
        if twice := [name for name, count in Counter(self.names).items() if count > 1]:
            raise UserError(f"two rewards are named {twice[0]!r}; give each its own name")
        self.counts = Counts()
        self.lanes = lanes_of(self.judges)

    @property
    def beside(self) -> bool:
        """Whether all are asked beside the sampling."""
        return all(id(judge.model) in self.lanes for judge in self.judges)

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

    @contextmanager
    def dropping(self) -> Iterator[None]:
        """What raises inside leaves no call waiting that has not begun."""
        try:
            yield
        except BaseException:
            for lane in self.lanes.values():
                lane.drop()
            raise

    def count(self, judge: Judge, answers: Sequence[Answer]) -> None:
        """For the report. `counts` is exchanged, not changed."""
        self.counts = counts = deepcopy(self.counts)
        for scores, said, seconds in answers:
            counts.asked[judge.name] += len(scores)
            counts.missing[judge.name] += int(scores.isnan().sum())
            counts.seconds[judge.name] += seconds
            if said:
                counts.cause[judge.name] = said
                counts.told[judge.name] += 1

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


@dataclass
class HandIn:
    """Samples that came together."""

    samples: int
    waiting: list[list[Sample]]
    """Of each reward, those of them and of earlier ones for which it is not asked yet."""
    calls: list[list[Future[Answer]]]
    """Of each reward, those that they have filled."""

    @property
    def futures(self) -> list[Future[Answer]]:
        return [future for calls in self.calls for future in calls]


class Asking:
    """Scores of samples that come group by group. Every reward is called as if all came at once: a groupwise one with a group, any other
    with `batch_size` samples in the order in which they come, and with what is left at the end. What all have seen is let go of.

    A reward that has a lane is called there, and what it raises is raised by whatever of this class comes next; any other at once.

    Args:
        look: called before each call of a reward and while calls are waited for; what it raises ends the asking.
    """

    def __init__(self, rewards: RewardSet, look: Callable[[], None]):
        self.rewards, self.look = rewards, look
        self.asked = Asked([[] for _ in rewards.judges], [[] for _ in rewards.judges], 0)
        self.coming: deque[HandIn] = deque()
        """What came later, in the order in which it came."""

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
        self.check()
        self._wait_for_room()
        before, judges = len(self.coming), self.rewards.judges
        groups = [samples_of(row, group) for row, group in zip(rows, media, strict=True)]
        waiting = [[*those] for those in (self.coming[-1].waiting if self.coming else self.asked.waiting)]
        calls = [next_calls(judge, those, groups, last) for judge, those in zip(judges, waiting, strict=True)]
        self.coming.append(HandIn(sum(map(len, groups)), waiting, [[] for _ in judges]))
        try:
            for k in sorted(range(len(judges)), key=lambda k: id(judges[k].model) not in self.rewards.lanes):  # what is at once is last
                self.coming[-1].calls[k] += (self._begin(judges[k], batch) for batch in calls[k])
        except BaseException:
            self.drop(before)
            raise

    def _begin(self, judge: Judge, batch: list[Sample]) -> Future[Answer]:
        lane = self.rewards.lanes.get(id(judge.model))
        if lane is not None:
            return lane.ask(partial(ask, judge, batch))
        self.look()
        liveness.doing(f"scoring with {judge.name!r}")
        return answered(ask(judge, batch))

    def drop(self, keep: int) -> None:
        """Forgets what came after so many of those in `coming`."""
        while len(self.coming) > keep:
            for future in self.coming.pop().futures:
                future.cancel()

    def ready(self) -> int:
        """How many of those in `coming` have all scores, and so have those before them."""
        return next((k for k, one in enumerate(self.coming) if not all(map(has_answer, one.futures))), len(self.coming))

    def take(self, count: int) -> None:
        """So many of those in `coming`, which are ready, into `asked` and into the rewards' counts."""
        for _ in range(count):
            hand_in = self.coming.popleft()
            found = [[*those] for those in self.asked.found]
            for judge, calls, scores in zip(self.rewards.judges, hand_in.calls, found, strict=True):
                answers = [future.result() for future in calls]
                scores += [answer.scores for answer in answers]
                self.rewards.count(judge, answers)
            self.asked = Asked(hand_in.waiting, found, self.asked.samples + hand_in.samples)

    def wait(self) -> None:
        """Until all calls are over; raises what one has raised, as soon as it has."""
        self._wait_until(lambda: [future for one in self.coming for future in one.futures if not future.done()], 0)

    def _wait_for_room(self) -> None:
        """Pictures of a reward that is slower than the sampling must not add up; and its threads have enough to do."""
        for lane in self.rewards.lanes.values():
            self._wait_until(partial(getattr, lane, "unfinished"), AHEAD * lane.workers)

    def _wait_until(self, unfinished: Callable[[], Sequence[Future[Any]]], most: int) -> None:
        while len(waiting := unfinished()) > most:
            liveness.doing("waiting for the rewards beside the sampling")
            wait(waiting, OFTEN, FIRST_COMPLETED)
            self.check()
            self.look()
        self.check()

    def check(self) -> None:
        """Raises what a call beside the sampling has raised."""
        for future in (future for one in self.coming for future in one.futures if future.done()):
            future.result()

    def scores(self) -> Tensor:
        """(N, R) float32 on the CPU of all samples that came, once the last has come; NaN where a score is missing."""
        self.wait()
        self.take(len(self.coming))
        columns = [torch.cat(found) for found in self.asked.found if found]
        return torch.stack(columns, dim=1) if columns else torch.empty(self.asked.samples, len(self.asked.found))
