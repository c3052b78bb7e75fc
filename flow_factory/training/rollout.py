"""The first half of an epoch: samples are drawn, and scored meanwhile."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

import torch
from torch import Tensor

from flow_factory.core.condition_memo import ConditionMemo
from flow_factory.core.dynamics import DYNAMICS
from flow_factory.core.groups import cut
from flow_factory.core.randomness import generator, normal
from flow_factory.core.sampling import Sampler
from flow_factory.data.encoding_windows import order_of
from flow_factory.data.order import EpochGroup
from flow_factory.data.several import sizes_of
from flow_factory.distributed.collectives import all_or_none, in_step, max_over_ranks
from flow_factory.models.failures import named_rows
from flow_factory.models.loading import DTYPES
from flow_factory.training.context import TrainingContext
from flow_factory.training.finished_work import FinishedWork
from flow_factory.training.given_rollouts import draws_targets, given_rollout
from flow_factory.training.rollout_scoring import RolloutScoring
from flow_factory.training.rollout_size import most_alike
from flow_factory.types import Cond, Rollout
from flow_factory.utils.errors import RowError
from flow_factory.utils.offload import to_cpu, to_device
from flow_factory.utils.terminal import bar

logger = logging.getLogger(__name__)


@dataclass
class RolloutCollector:
    """The order in which a process draws its samples, and the way of drawing each. All parts are built elsewhere and passed in."""

    context: TrainingContext
    judging: RolloutScoring = field(init=False)
    rollouts: list[Rollout] = field(default_factory=list, init=False)
    """The micro-batches of this epoch that were submitted to rewards."""
    waiting: list[Rollout] = field(default_factory=list, init=False)
    """The micro-batches that were drawn since."""
    done: FinishedWork | None = field(default=None, init=False)
    """The finished part of the next epoch, if an interrupted run has begun it."""
    shown: int = field(default=0, init=False)
    """The number of this process's first images of an epoch that are logged."""
    cond: tuple[int, Cond, Cond] | None = field(default=None, init=False)
    """The last used condition: its row, on the device, and as the rollouts store it."""

    def __post_init__(self) -> None:
        measured = self.context.config.train.rollout_batch_size == "auto" and self.context.given is None
        self.together = None if measured else self.context.plan.drawn_together
        """The number of micro-batches that one call of the pipeline draws."""
        self.behind = int(self.context.accelerator.device.type != "cpu")
        """The number of calls whose images are not read yet, while a GPU draws the next ones. On a CPU a call returns finished images."""

    def __call__(self, epoch: int) -> list[Rollout]:
        """Draws this process's micro-batches of the epoch, each of one row.

        Raises:
            Interrupted: any process got a signal. All agree on it after each call of the pipeline.
            UserError: the pipeline failed on a row; or a reward failed, see `all_or_none`.
        """
        context, groups = self.context, self.epoch_groups(epoch)
        all_or_none(context.accelerator, context.interrupt, lambda: [context.rows[group.row] for group in groups])  # may be edited
        self.begin()
        if self.together is None:
            self.together = self.most_alike(groups[self.mine[0][0]], epoch)
        weights = context.algorithm.rolls_out(context.progress.updates)
        with context.meter.phase("rollout"), torch.no_grad(), context.store.use(weights), context.engine.gathered():
            draws = self.draws(len(self.rollouts) + len(self.waiting))
            shown = bar(draws, "rolling out", shown=context.accelerator.is_main_process, delay=5)
            for index, members in in_step(context.accelerator, context.interrupt, shown, len(draws)):
                drawn = (self.sample if context.given is None else self.given)(groups[index], members, epoch)
                self.waiting.append(drawn)
                self.judge(len(self.waiting) - self.behind)
                context.meter.step("call")
            look_at(self.waiting[-1:])
            self.judging.release_media(self.waiting[-1:] if self.behind and not context.judged else [])
        self.cond = None
        self.rollouts, self.waiting = self.drawn(), []
        return self.rollouts

    def begin(self) -> None:
        """Starts an epoch, with the finished part of an interrupted run if there is one."""
        context, size = self.context, self.context.config.train.per_device_batch_size
        shown = context.config.log.num_samples if context.accelerator.is_main_process else 0
        deal, self.shown = context.plan.rolled, shown
        self.judging = RolloutScoring(context.accelerator, context.interrupt, context.meter, deal, context.rewards, size, shown)
        self.rollouts, self.waiting = [], []
        if self.done is not None:
            done, self.done = self.done, None
            self.judging.resume(done)
            self.rollouts, self.waiting, self.together = done.rollouts[: done.taken], done.rollouts[done.taken :], done.together

    def judge(self, count: int) -> None:
        """Submits the first `count` waiting micro-batches, if they fill the calls of the rewards."""
        drawn = self.waiting[:count]
        look_at(drawn[-1:])
        if not self.context.judged:
            self.judging.release_media(drawn[-1:])
        elif self.judging.due(drawn):
            if not self.context.rewards.beside:
                self.context.policy.offload_idle()  # frees memory for the rewards
            self.rollouts += self.judging.submit(drawn)
            self.waiting = self.waiting[count:]

    @property
    def seen(self) -> bool:
        """Whether the next media are scored or logged. Others are not decoded."""
        return self.context.judged or sum(len(one.ids) for one in self.rollouts + self.waiting) < self.shown

    def drawn(self) -> list[Rollout]:
        """All micro-batches of the epoch so far."""
        return self.rollouts + [part for one in self.waiting for part in cut(one, self.context.config.train.per_device_batch_size)]

    def done_so_far(self) -> FinishedWork | None:
        """The finished part of this epoch; None if there is nothing, or for media of the data set, which are quick to read."""
        drawn = self.drawn()
        if self.done is not None or not drawn or self.context.given is not None:
            return self.done
        look_at(drawn[-1:])
        judging, counts = self.judging, self.judging.counts or self.context.rewards.counts
        return FinishedWork(drawn, judging.taken, judging.ids, judging.stream.taken, counts, self.together)

    def forget(self) -> None:
        """Frees the rollouts at the end of an epoch."""
        self.rollouts, self.waiting = [], []

    @property
    def mine(self) -> list[tuple[int, int]]:
        """(group, index in it) of this process's micro-batches."""
        return self.context.plan.rolled.of(self.context.accelerator.process_index)

    def epoch_groups(self, epoch: int) -> list[EpochGroup]:
        """The groups of an epoch with their rows."""
        return order_of(self.context.config, sizes_of(self.context.rows)).epoch(epoch)

    def samples(self) -> list[tuple[int, tuple[int, ...]]]:
        """(group, numbers of the samples) of this process's micro-batches."""
        train = self.context.config.train
        many, size = train.group_size, train.per_device_batch_size
        return [(group, tuple(range(group * many + k * size, group * many + (k + 1) * size))) for group, k in self.mine]

    def draws(self, done: int = 0) -> list[tuple[int, list[int]]]:
        """(group, members of it) for each call of the pipeline by this process. A call draws one micro-batch or several.

        Args:
            done: the number of finished micro-batches, of whole calls.
        """
        size, together = self.context.config.train.per_device_batch_size, self.together or 1
        taken = [(group, [k for _, k in mine]) for group, mine in groupby(self.mine[done:], key=lambda m: m[0])]
        parts = [(group, ks[i : i + together]) for group, ks in taken for i in range(0, len(ks), together)]
        return [(group, [k * size + j for k in ks for j in range(size)]) for group, ks in parts]

    def most_alike(self, group: EpochGroup, epoch: int) -> int:
        """The number of micro-batches that one call can draw without changing a bit, measured with the run's first group."""
        context, deal = self.context, self.context.plan.rolled
        size, most, shares = context.config.train.per_device_batch_size, deal.of_a_group, context.engine.collective or deal.team > 1
        with torch.no_grad():
            found = most_alike(
                lambda members: self.sample(group, members, epoch), size, most,
                lambda same: not max_over_ranks(context.accelerator, not same), steps_down=not shares,
            )  # fmt: skip
        logger.info("train.rollout_batch_size: auto draws %d of the %d samples of a group in a call", found * size, most * size)
        return found

    def given(self, group: EpochGroup, members: Sequence[int], epoch: int) -> Rollout:
        """A rollout whose members are the row's own media."""
        context, train, row = self.context, self.context.config.train, self.context.rows[group.row]
        assert context.given is not None
        ids = [group.number * train.group_size + k for k in members]
        with named_rows([row], context.adapter, "encode", RowError):
            seed = train.seed if draws_targets(train) else None
            return given_rollout(context.given, row, self.cond_of(group.row), group.number, epoch, ids, seed)

    def sample(self, group: EpochGroup, members: Sequence[int], epoch: int) -> Rollout:
        """Draws some members of a group. Their noise depends only on (seed, epoch, global sample id)."""
        context, train = self.context, self.context.config.train
        ids = tuple(group.number * train.group_size + k for k in members)
        cond, kept = self.cond_of(group.row)
        sampler = self.sampler(group.number, ids, epoch)
        generators = [generator(train.seed, "init", epoch, i) for i in self.starts(ids)]
        memo = ConditionMemo()
        row = context.rows[group.row]
        with named_rows([row], context.adapter, "draw", RowError):
            arguments = cond, context.call, train.num_inference_steps, sampler, generators, memo, self.seen
            media, recorder = context.engine("sample", *arguments)
        rollout = Rollout(row, kept, recorder.kept, media, group.number, epoch, ids, memo=memo)
        if context.algorithm.reads_final:
            rollout.x0 = recorder.final
        if not train.stochastic or context.algorithm.with_schedule:
            rollout.schedule = recorder.schedule[0].cpu(), recorder.schedule[1].cpu()
        if train.offload_samples_to_cpu:
            rollout.steps = [replace(s, **to_cpu(vars(s))) for s in rollout.steps]
            rollout.x0 = to_cpu(rollout.x0)
        return rollout

    def starts(self, ids: Sequence[int]) -> list[int]:
        """The ids whose initial noise these samples use: their own, or the first of those that share it."""
        train = self.context.config.train
        shared = self.context.config.scheduler.branches(train.group_size) if train.stochastic else 1
        together = train.group_size if train.init_same_noise else shared
        return [i // together * together for i in ids]

    def cond_of(self, row: int) -> tuple[Cond, Cond]:
        """The condition (on the device, as rollouts store it). Consecutive micro-batches of a group share it."""
        if self.cond is None or self.cond[0] != row:
            read = self.context.conds[row]
            here = to_device(read, self.context.accelerator.device)
            self.cond = row, here, read if self.context.config.train.offload_samples_to_cpu else here
        return self.cond[1:]

    def sampler(self, group: int, ids: Sequence[int], epoch: int) -> Sampler:
        """The sampler of these samples of a group."""
        config, algorithm = self.context.config, self.context.algorithm
        train, scheduler = config.train, config.scheduler

        def noise(index: int, x: Tensor, purpose: str) -> Tensor:
            drawn = torch.stack([normal(x.shape[1:], torch.float32, "cpu", train.seed, purpose, epoch, i, index) for i in ids])
            return to_device(drawn.pin_memory() if x.is_cuda else drawn, x.device)  # queued in the device's stream, without waiting for it

        return Sampler(
            DYNAMICS[scheduler.dynamics_type], scheduler.noise_level, algorithm.noisy(epoch, group), noise,
            DTYPES[train.latent_storage_dtype], kept=algorithm.kept(epoch, group), with_mean=algorithm.with_mean,
        )  # fmt: skip


def look_at(rollouts: Sequence[Rollout]) -> None:
    """Converts their images, see `readback`."""
    for rollout in rollouts:
        rollout.media = list(rollout.media)
