"""The scoring of samples that arrive group by group, at once or in parallel with the sampling."""

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
from flow_factory.rewards.executors import AHEAD, answered, has_answer
from flow_factory.rewards.inputs import Sample, samples_of
from flow_factory.rewards.loading import LoadedReward
from flow_factory.types import Row

if TYPE_CHECKING:
    from flow_factory.rewards.scoring import RewardSet

OFTEN = 0.2
"""Seconds between two checks for signals and other processes while waiting for calls."""


class StreamState(NamedTuple):
    """The state of a stream. It is immutable: changes make a new one."""

    waiting: list[list[Sample]]
    """For each reward, the last samples, which are not in a call yet."""
    found: list[list[Tensor]]
    """For each reward, the scores of the samples before them."""
    sources: list[str]
    """The data set of each sample."""


@dataclass
class Submission:
    """Samples that were submitted together."""

    sources: list[str]
    """The data set of each."""
    waiting: list[list[Sample]]
    """For each reward, the samples of this and earlier submissions that are not in a call yet."""
    calls: list[list[Future[Answer]]]
    """For each reward, the calls that they have filled."""

    @property
    def futures(self) -> list[Future[Answer]]:
        return [future for calls in self.calls for future in calls]


class ScoringStream:
    """The scores of samples that arrive group by group. The batches of a reward are the same as if all samples arrived at once: a groupwise
    reward gets a group, any other `batch_size` samples in their order, and the rest at the end. Scored images are freed.

    A reward with an executor is called there, and its errors are raised by the next method call. Any other reward is called at once.

    Args:
        look: called before each call of a reward and while waiting. An exception in it ends the scoring.
    """

    def __init__(self, rewards: "RewardSet", look: Callable[[], None]):
        self.rewards, self.look = rewards, look
        self.taken = StreamState([[] for _ in rewards.rewards], [[] for _ in rewards.rewards], [])
        self.coming: deque[Submission] = deque()
        """The submissions that are not in `taken` yet, in their order."""

    @torch.no_grad()
    def add(self, rows: Sequence[Row], media: Sequence[Sequence[Any]], last: bool) -> None:
        """Submits the next groups. If it raises, nothing was requested.

        Args:
            rows: the row of each group. Their condition files are opened for the rewards that take them.
            media: the images or videos of each group. It must be the whole group if a reward is groupwise.
            last: whether these are the last groups.

        Raises:
            RewardError: a reward raised, took longer than its `max_seconds`, or did not return one score per sample.
            UserError: a reward does not score this kind of media, lacks a condition that it requires, or a condition file is damaged.
        """
        self.check()
        self._wait_for_room()
        before, rewards = len(self.coming), self.rewards.rewards
        groups = [samples_of(row, group) for row, group in zip(rows, media, strict=True)]
        waiting = [[*those] for those in (self.coming[-1].waiting if self.coming else self.taken.waiting)]
        mine = [[group for row, group in zip(rows, groups, strict=True) if reward.scores(row.dataset)] for reward in rewards]
        calls = [next_calls(reward, those, its, last) for reward, those, its in zip(rewards, waiting, mine, strict=True)]
        sources = [row.dataset for row, group in zip(rows, groups, strict=True) for _ in group]
        self.coming.append(Submission(sources, waiting, [[] for _ in rewards]))
        try:
            # synchronous rewards last
            for k in sorted(range(len(rewards)), key=lambda k: id(rewards[k].model) not in self.rewards.executors):
                self.coming[-1].calls[k] += (self._begin(rewards[k], batch) for batch in calls[k])
        except BaseException:
            self.drop(before)
            raise

    def _begin(self, reward: LoadedReward, batch: list[Sample]) -> Future[Answer]:
        executor = self.rewards.executors.get(id(reward.model))
        if executor is not None:
            return executor.submit(partial(call_reward, reward, batch))
        self.look()
        liveness.set_activity(f"scoring with {reward.name!r}")
        return answered(call_reward(reward, batch))

    def drop(self, keep: int) -> None:
        """Drops all but the first `keep` submissions of `coming`."""
        while len(self.coming) > keep:
            for future in self.coming.pop().futures:
                future.cancel()

    def ready(self) -> int:
        """The number of leading submissions in `coming` that have all scores."""
        return next((k for k, one in enumerate(self.coming) if not all(map(has_answer, one.futures))), len(self.coming))

    def take(self, count: int) -> None:
        """Moves the first `count` submissions of `coming`, which must be ready, to `taken`, and counts them."""
        for _ in range(count):
            hand_in = self.coming.popleft()
            found = [[*those] for those in self.taken.found]
            for reward, calls, scores in zip(self.rewards.rewards, hand_in.calls, found, strict=True):
                answers = [future.result() for future in calls]
                scores += [answer.scores for answer in answers]
                self.rewards.count(reward, answers)
            self.taken = StreamState(hand_in.waiting, found, self.taken.sources + hand_in.sources)

    def wait(self, most: int | None = None) -> None:
        """Waits for all calls, or for those of the first `most` submissions. Raises the error of a call as soon as it fails."""
        first = list(self.coming)[:most]
        self._wait_until(lambda: [future for one in first for future in one.futures if not future.done()], 0)

    @property
    def scored(self) -> int:
        """The number of leading samples that have all scores in `taken`."""
        ends = [len(self.taken.sources)]
        for reward, found in zip(self.rewards.rewards, self.taken.found, strict=True):
            ends += self._places(reward)[sum(map(len, found)) :][:1]
        return min(ends)

    def _wait_for_room(self) -> None:
        """Waits until few calls are pending, so that images do not accumulate for a slow reward."""
        for executor in self.rewards.executors.values():
            self._wait_until(partial(getattr, executor, "unfinished"), AHEAD * executor.workers)

    def _wait_until(self, unfinished: Callable[[], Sequence[Future[Any]]], most: int) -> None:
        while len(waiting := unfinished()) > most:
            liveness.set_activity("waiting for the async rewards")
            wait(waiting, OFTEN, FIRST_COMPLETED)
            self.check()
            self.look()
        self.check()

    def check(self) -> None:
        """Raises the error of an asynchronous call."""
        for future in (future for one in self.coming for future in one.futures if future.done()):
            future.result()

    def scores(self) -> Tensor:
        """(N, R) float32 on the CPU of all samples, after the last submission. NaN if a score is missing, or if the reward does not score
        the sample's data set."""
        self.wait()
        self.take(len(self.coming))
        return self.scores_so_far()

    def scores_so_far(self) -> Tensor:
        """(`scored`, R): the scores of the leading samples, as in `scores`."""
        scores = torch.full((len(self.taken.sources), len(self.taken.found)), torch.nan)
        for k, (reward, found) in enumerate(zip(self.rewards.rewards, self.taken.found, strict=True)):
            if found:
                known = torch.cat(found)
                scores[self._places(reward)[: len(known)], k] = known
        return scores[: self.scored]

    def _places(self, reward: LoadedReward) -> list[int]:
        """The indices of the samples in `taken` that the reward scores."""
        return [k for k, source in enumerate(self.taken.sources) if reward.scores(source)]
