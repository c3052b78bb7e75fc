"""Scores an epoch's samples while they are drawn. Images that every reward has scored leave main memory, except those to be logged."""

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
from flow_factory.distributed.collectives import all_or_none, most_of_ranks
from flow_factory.distributed.shared_groups import Group, whole_groups
from flow_factory.rewards.calls import Counts
from flow_factory.rewards.scoring import RewardSet
from flow_factory.training.finished_work import FinishedWork
from flow_factory.training.meter import Meter
from flow_factory.types import Rollout
from flow_factory.utils.errors import UserError
from flow_factory.utils.signals import Interrupt, Interrupted


class RolloutScoring:
    """Of one epoch on one process. Every reward is called as if it were asked for all samples at once, see `ScoringStream`.

    Args:
        size: samples of a micro-batch.
        shown: so many of this process's first pictures stay.
    """

    def __init__(self, accelerator: Accelerator, interrupt: Interrupt, meter: Meter, deal: Deal, rewards: RewardSet, size: int, shown: int):
        self.accelerator, self.interrupt, self.meter, self.deal, self.rewards = accelerator, interrupt, meter, deal, rewards
        self.size, self.shown = size, shown
        self.exchanged = rewards.groupwise and not deal.whole
        self.enough = deal.heard_at_once(size, rewards.batch)
        self.asking = rewards.asking(interrupt.look)
        self.ids: list[int] = []
        """Of the samples whose scores all processes have: see `taken`."""
        self.taken = 0
        """Micro-batches that were handed in, and whose scores all processes have."""
        self.coming: deque[tuple[Sequence[Rollout], list[int]]] = deque()
        """Those that were handed in later, and the ids of what was asked for with them; as in `ScoringStream.coming`."""
        self.counts: Counts | None = None
        """The epoch's, once all rewards are there."""
        self.complete = False
        """Whether all samples of the epoch were handed in."""

    def resume(self, done: FinishedWork) -> None:
        """Goes on where another process of the same run stood."""
        self.ids, self.taken = done.ids, done.taken
        self.asking.asked, self.rewards.counts = done.asked, done.counts
        self.shown -= sum(len(rollout.media) for rollout in done.rollouts[: self.taken])

    def due(self, drawn: Sequence[Rollout]) -> bool:
        """Whether these samples, which no reward has seen, are to be handed in: whole groups, and enough to fill a call of each reward.

        Processes that have drawn as often say the same.
        """
        samples = sum(len(rollout.ids) for rollout in drawn)
        return samples > 0 and samples % self.enough == 0

    def heard(self, drawn: Sequence[Rollout]) -> list[Rollout]:
        """The next samples, in micro-batches, in the order of the epoch; every process must come as often.

        Raises:
            UserError, Interrupted: see `all_or_none`.
        """
        rollouts = [part for one in drawn for part in cut(one, self.size)]
        self._ask(rollouts, last=False)
        return rollouts

    def _ask(self, rollouts: Sequence[Rollout], last: bool) -> None:
        parts = [list(part) for _, part in groupby(rollouts, key=lambda r: r.group)]
        groups = [Group(p[0].group, p[0].row, [i for r in p for i in r.ids], [m for r in p for m in r.media]) for p in parts]
        with self.meter.phase("reward"):
            if self.exchanged:
                wait_for_everyone("rolling out")
                groups = whole_groups(self.accelerator, self.deal, groups)
            elif not self.deal.leads(self.accelerator.process_index):  # the first process of the team has the same
                groups = []
            self._add(groups, last)
        self.coming.append((rollouts, [i for g in groups for i in g.ids]))
        self._take()

    def _add(self, groups: Sequence[Group], last: bool) -> None:
        """Asks for their scores; where a process is stopped or fails, nothing was asked on any."""
        rows, media = [g.row for g in groups], [g.media for g in groups]
        before = len(self.asking.coming)
        try:
            all_or_none(self.accelerator, self.interrupt, lambda: self.asking.add(rows, media, last))
        except (UserError, Interrupted):
            self.asking.drop(before)
            raise

    def _take(self) -> None:
        """What all processes have the scores of: its pictures are let go."""
        ready = self.asking.ready()
        if self.rewards.lanes:  # which are not equally fast everywhere
            ready = -most_of_ranks(self.accelerator, -ready)
        self._took(ready)

    def _took(self, ready: int) -> None:
        self.asking.take(ready)
        for _ in range(ready):
            rollouts, ids = self.coming.popleft()
            self.taken += len(rollouts)
            self.ids += ids
            self.let_go(rollouts)

    def let_go(self, rollouts: Sequence[Rollout]) -> None:
        """Of the next pictures, but those that are shown."""
        for rollout in rollouts:
            rollout.media = rollout.media[: self.shown]
            self.shown -= len(rollout.media)

    def complete_with(self, rollouts: Sequence[Rollout]) -> None:
        """Hands in what was not of all the epoch's micro-batches."""
        if not self.complete:
            self._ask(rollouts[self.taken + sum(len(part) for part, _ in self.coming) :], last=True)
            self.complete = True

    def first(self, samples: int) -> dict[int, Tensor]:
        """(R,) by id, of this process's first samples, so many at least, once they have all their scores; of what is complete.

        Every process waits for as many hand-ins as the others.

        Raises:
            UserError, Interrupted: see `all_or_none`.
        """
        while most_of_ranks(self.accelerator, samples - self.asking.scored) > 0:
            all_or_none(self.accelerator, self.interrupt, partial(self.asking.wait, 1))
            self._took(1)
        return dict(zip(self.ids, self.asking.scores_so_far(), strict=False))

    def go_on(self) -> None:
        """From here on a signal stops nothing: weights have changed, and the epoch is learnt to its end."""
        self.interrupt = Interrupt()
        self.asking.look = self.interrupt.look

    def finish(self, rollouts: Sequence[Rollout]) -> None:
        """Fills in `Rollout.rewards` of all the epoch's micro-batches, the last ones of which were not handed in before.

        Of a team the first process has them, and the others NaN.

        Raises:
            UserError, Interrupted: see `all_or_none`.
        """
        self.complete_with(rollouts)
        if self.rewards.lanes:
            with self.meter.phase("reward"):
                all_or_none(self.accelerator, self.interrupt, self.asking.wait)
            self._take()
        self.counts = self.rewards.counts
        known = dict(zip(self.ids, self.asking.scores(), strict=True))
        if self.exchanged:
            known = {i: scores for part in gather_object([known]) for i, scores in part.items()}
        missing = torch.full((len(self.rewards.names),), torch.nan)
        heard = self.exchanged or self.deal.leads(self.accelerator.process_index)
        for rollout in rollouts:
            rollout.rewards = torch.stack([known[i] if heard else missing for i in rollout.ids])
