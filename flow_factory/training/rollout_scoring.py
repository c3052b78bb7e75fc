"""The scoring of an epoch's samples while they are drawn. Scored images are freed, except those to be logged."""

from collections import deque
from collections.abc import Sequence
from functools import partial
from itertools import groupby

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from flow_factory.config.plan import Deal
from flow_factory.core.groups import cut
from flow_factory.distributed.barriers import wait_for_everyone
from flow_factory.distributed.collectives import all_or_none, max_over_ranks
from flow_factory.distributed.shared_groups import Group, whole_groups
from flow_factory.rewards.calls import Counts
from flow_factory.rewards.scoring import RewardSet
from flow_factory.training.finished_work import FinishedWork
from flow_factory.training.meter import Meter
from flow_factory.types import Rollout
from flow_factory.utils.errors import UserError
from flow_factory.utils.signals import Interrupt, Interrupted


class RolloutScoring:
    """The scoring of one epoch on one process. The batches of a reward are those of scoring all samples at once, see `ScoringStream`.

    Args:
        size: the number of samples of a micro-batch.
        shown: the number of this process's first images that are kept.
    """

    def __init__(self, accelerator: Accelerator, interrupt: Interrupt, meter: Meter, deal: Deal, rewards: RewardSet, size: int, shown: int):
        self.accelerator, self.interrupt, self.meter, self.deal, self.rewards = accelerator, interrupt, meter, deal, rewards
        self.size, self.shown = size, shown
        self.exchanged = rewards.groupwise and not deal.whole
        self.enough = deal.submitted_at_once(size, rewards.batch)
        self.stream = rewards.stream(interrupt.look)
        self.ids: list[int] = []
        """The ids of the samples that all processes have the scores of: see `taken`."""
        self.taken = 0
        """The number of submitted micro-batches that all processes have the scores of."""
        self.coming: deque[tuple[Sequence[Rollout], list[int]]] = deque()
        """Later submissions, each with the ids of its samples; as in `ScoringStream.coming`."""
        self.counts: Counts | None = None
        """The counts of the epoch, once all rewards are there."""
        self.complete = False
        """Whether all samples of the epoch were submitted."""

    def resume(self, done: FinishedWork) -> None:
        """Continues from the finished work of an interrupted run."""
        self.ids, self.taken = done.ids, done.taken
        self.stream.taken, self.rewards.counts = done.stream, done.counts
        self.shown -= sum(len(rollout.media) for rollout in done.rollouts[: self.taken])

    def due(self, drawn: Sequence[Rollout]) -> bool:
        """Whether to submit these new samples: they must be whole groups, and fill a call of each reward.

        The result is the same on all processes that have drawn the same number of times.
        """
        samples = sum(len(rollout.ids) for rollout in drawn)
        return samples > 0 and samples % self.enough == 0

    def submit(self, drawn: Sequence[Rollout]) -> list[Rollout]:
        """Submits the next micro-batches, in the order of the epoch. All processes call this together.

        Raises:
            UserError, Interrupted: see `all_or_none`.
        """
        rollouts = [part for one in drawn for part in cut(one, self.size)]
        self._submit(rollouts, last=False)
        return rollouts

    def _submit(self, rollouts: Sequence[Rollout], last: bool) -> None:
        parts = [list(part) for _, part in groupby(rollouts, key=lambda r: r.group)]
        groups = [Group(p[0].group, p[0].row, [i for r in p for i in r.ids], [m for r in p for m in r.media]) for p in parts]
        with self.meter.phase("reward"):
            if self.exchanged:
                wait_for_everyone("rolling out")
                groups = whole_groups(self.accelerator, self.deal, groups)
            elif not self.deal.leads(self.accelerator.process_index):  # the first process of the team does this
                groups = []
            self._add(groups, last)
        self.coming.append((rollouts, [i for g in groups for i in g.ids]))
        self._take()

    def _add(self, groups: Sequence[Group], last: bool) -> None:
        """Requests the scores of these groups. If any process is stopped or fails, none has requested anything."""
        rows, media = [g.row for g in groups], [g.media for g in groups]
        before = len(self.stream.coming)
        try:
            all_or_none(self.accelerator, self.interrupt, lambda: self.stream.add(rows, media, last))
        except (UserError, Interrupted):
            self.stream.drop(before)
            raise

    def _take(self) -> None:
        """Takes the scores that all processes have, and frees their images."""
        ready = self.stream.ready()
        if self.rewards.executors:  # their speed differs between processes
            ready = -max_over_ranks(self.accelerator, -ready)
        self._took(ready)

    def _took(self, ready: int) -> None:
        self.stream.take(ready)
        for _ in range(ready):
            rollouts, ids = self.coming.popleft()
            self.taken += len(rollouts)
            self.ids += ids
            self.release_media(rollouts)

    def release_media(self, rollouts: Sequence[Rollout]) -> None:
        """Frees the images of these micro-batches, except those to be logged."""
        for rollout in rollouts:
            rollout.media = rollout.media[: self.shown]
            self.shown -= len(rollout.media)

    def complete_with(self, rollouts: Sequence[Rollout]) -> None:
        """Submits those of all the epoch's micro-batches that were not submitted yet."""
        if not self.complete:
            self._submit(rollouts[self.taken + sum(len(part) for part, _ in self.coming) :], last=True)
            self.complete = True

    def first(self, samples: int) -> dict[int, Tensor]:
        """Sample id -> scores (R,), of at least this many of this process's first samples, once they are complete.

        All processes wait for the same number of submissions.

        Raises:
            UserError, Interrupted: see `all_or_none`.
        """
        while max_over_ranks(self.accelerator, samples - self.stream.scored) > 0:
            all_or_none(self.accelerator, self.interrupt, partial(self.stream.wait, 1))
            self._took(1)
        return dict(zip(self.ids, self.stream.scores_so_far(), strict=False))

    def ignore_signals(self) -> None:
        """Ignores signals from here on: weights have changed, and the epoch is trained to its end."""
        self.interrupt = Interrupt()
        self.stream.look = self.interrupt.look

    def finish(self, rollouts: Sequence[Rollout]) -> None:
        """Sets `Rollout.rewards` of all the epoch's micro-batches, after submitting the last ones.

        In a team of context parallelism the first process has the scores, and the others NaN.

        Raises:
            UserError, Interrupted: see `all_or_none`.
        """
        self.complete_with(rollouts)
        if self.rewards.executors:
            with self.meter.phase("reward"):
                all_or_none(self.accelerator, self.interrupt, self.stream.wait)
            self._take()
        self.counts = self.rewards.counts
        known = dict(zip(self.ids, self.stream.scores(), strict=True))
        if self.exchanged:
            known = {i: scores for part in gather_object([known]) for i, scores in part.items()}
        missing = torch.full((len(self.rewards.names),), torch.nan)
        scored = self.exchanged or self.deal.leads(self.accelerator.process_index)
        for rollout in rollouts:
            rollout.rewards = torch.stack([known[i] if scored else missing for i in rollout.ids])
