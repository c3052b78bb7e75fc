"""Scores of samples that arrive group by group, computed at once or in parallel with the sampling."""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from flow_factory.distributed import liveness
from flow_factory.rewards.calls import Answer, call_reward, next_calls
from flow_factory.rewards.inputs import Sample, samples_of
from flow_factory.rewards.lanes import AHEAD, answered, has_answer
from flow_factory.rewards.loading import LoadedReward
from flow_factory.types import Row

if TYPE_CHECKING:
    from flow_factory.rewards.scoring import RewardSet

OFTEN = 0.2
"""Seconds between two looks for signals and for other processes while calls are waited for."""


class StreamState(NamedTuple):
    """What is known of the samples that came; not changed, but exchanged for another."""

    waiting: list[list[Sample]]
    """Of each reward, the last samples, of which it has not been asked yet."""
    found: list[list[Tensor]]
    """Of each reward, the scores of those before."""
    sources: list[str]
    """The data set of each sample that came."""


@dataclass
class HandIn:
    """Samples that came together."""

    sources: list[str]
    """The data set of each."""
    waiting: list[list[Sample]]
    """Of each reward, those of them and of earlier ones for which it is not asked yet."""
    calls: list[list[Future[Answer]]]
    """Of each reward, those that they have filled."""

    @property
    def futures(self) -> list[Future[Answer]]:
        return [future for calls in self.calls for future in calls]


class ScoringStream:
    """Scores of samples that come group by group. Every reward is called as if all came at once: a groupwise one with a group, any other
    with `batch_size` samples in the order in which they come, and with what is left at the end. What all have seen is let go of.

    A reward that has a lane is called there, and what it raises is raised by whatever of this class comes next; any other at once.

    Args:
        look: called before each call of a reward and while calls are waited for; what it raises ends the asking.
    """

    def __init__(self, rewards: "RewardSet", look: Callable[[], None]):
        self.rewards, self.look = rewards, look
        self.asked = StreamState([[] for _ in rewards.rewards], [[] for _ in rewards.rewards], [])
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
        before, rewards = len(self.coming), self.rewards.rewards
        groups = [samples_of(row, group) for row, group in zip(rows, media, strict=True)]
        waiting = [[*those] for those in (self.coming[-1].waiting if self.coming else self.asked.waiting)]
        mine = [[group for row, group in zip(rows, groups, strict=True) if reward.scores(row.dataset)] for reward in rewards]
        calls = [next_calls(reward, those, its, last) for reward, those, its in zip(rewards, waiting, mine, strict=True)]
        sources = [row.dataset for row, group in zip(rows, groups, strict=True) for _ in group]
        self.coming.append(HandIn(sources, waiting, [[] for _ in rewards]))
        try:
            for k in sorted(range(len(rewards)), key=lambda k: id(rewards[k].model) not in self.rewards.lanes):  # what is at once is last
                self.coming[-1].calls[k] += (self._begin(rewards[k], batch) for batch in calls[k])
        except BaseException:
            self.drop(before)
            raise

    def _begin(self, reward: LoadedReward, batch: list[Sample]) -> Future[Answer]:
        lane = self.rewards.lanes.get(id(reward.model))
        if lane is not None:
            return lane.ask(partial(call_reward, reward, batch))
        self.look()
        liveness.set_activity(f"scoring with {reward.name!r}")
        return answered(call_reward(reward, batch))

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
            for reward, calls, scores in zip(self.rewards.rewards, hand_in.calls, found, strict=True):
                answers = [future.result() for future in calls]
                scores += [answer.scores for answer in answers]
                self.rewards.count(reward, answers)
            self.asked = StreamState(hand_in.waiting, found, self.asked.sources + hand_in.sources)

    def wait(self, most: int | None = None) -> None:
        """Until all calls are over, or those of the first `most` of `coming`; raises what any has raised, as soon as it has."""
        first = list(self.coming)[:most]
        self._wait_until(lambda: [future for one in first for future in one.futures if not future.done()], 0)

    @property
    def scored(self) -> int:
        """How many of the samples that came first have all their scores in `asked`."""
        ends = [len(self.asked.sources)]
        for reward, found in zip(self.rewards.rewards, self.asked.found, strict=True):
            ends += self._places(reward)[sum(map(len, found)) :][:1]
        return min(ends)

    def _wait_for_room(self) -> None:
        """Pictures of a reward that is slower than the sampling must not add up; and its threads have enough to do."""
        for lane in self.rewards.lanes.values():
            self._wait_until(partial(getattr, lane, "unfinished"), AHEAD * lane.workers)

    def _wait_until(self, unfinished: Callable[[], Sequence[Future[Any]]], most: int) -> None:
        while len(waiting := unfinished()) > most:
            liveness.set_activity("waiting for the async rewards")
            wait(waiting, OFTEN, FIRST_COMPLETED)
            self.check()
            self.look()
        self.check()

    def check(self) -> None:
        """Raises what a call beside the sampling has raised."""
        for future in (future for one in self.coming for future in one.futures if future.done()):
            future.result()

    def scores(self) -> Tensor:
        """(N, R) float32 on the CPU of all samples that came, once the last has come; NaN where a score is missing, and where the reward
        does not score the sample's data set."""
        self.wait()
        self.take(len(self.coming))
        return self.scores_so_far()

    def scores_so_far(self) -> Tensor:
        """(`scored`, R), of those; NaN likewise."""
        scores = torch.full((len(self.asked.sources), len(self.asked.found)), torch.nan)
        for k, (reward, found) in enumerate(zip(self.rewards.rewards, self.asked.found, strict=True)):
            if found:
                known = torch.cat(found)
                scores[self._places(reward)[: len(known)], k] = known
        return scores[: self.scored]

    def _places(self, reward: LoadedReward) -> list[int]:
        """Which of the samples in `asked` it scores."""
        return [k for k, source in enumerate(self.asked.sources) if reward.scores(source)]
