"""The one loop: roll out, score, advantages, learn."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby, islice
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from flow_factory.advantage import AGGREGATIONS, varies
from flow_factory.algorithms.base import Algorithm
from flow_factory.config import BatchPlan, RunConfig, pipeline_kwargs
from flow_factory.data.order import Slot, rows_of_epoch
from flow_factory.distributed import all_or_none, gather_groups, most_of_ranks
from flow_factory.dynamics import DYNAMICS
from flow_factory.ema import decay_after
from flow_factory.engines import Engine
from flow_factory.errors import RowError
from flow_factory.frugal import moved, parked
from flow_factory.groups import cut
from flow_factory.interrupt import Interrupt
from flow_factory.judging import Judging
from flow_factory.learner import Learner, quiet_bar
from flow_factory.memo import Memo
from flow_factory.meter import Meter
from flow_factory.models.base import ModelAdapter
from flow_factory.models.failures import named_rows
from flow_factory.models.loading import DTYPES
from flow_factory.pairs import Pairs
from flow_factory.patience import meet_again
from flow_factory.policy import Policy
from flow_factory.randomness import generator, normal
from flow_factory.rewards.scoring import RewardSet
from flow_factory.rewards.silence import Silence
from flow_factory.rollout_size import most_alike
from flow_factory.sampling import Sampler
from flow_factory.shared_groups import share
from flow_factory.training_state import Progress
from flow_factory.types import Cond, Rollout, Row, Sample
from flow_factory.watch import Watch
from flow_factory.weights import WeightStore

logger = logging.getLogger(__name__)


@dataclass
class Trainer:
    """Everything is built outside (`train.build`) and handed in; this class only knows the order of things."""

    config: RunConfig
    plan: BatchPlan
    accelerator: Accelerator
    adapter: ModelAdapter
    engine: Engine
    """With the policy and its optimiser inside."""
    store: WeightStore
    algorithm: Algorithm
    schedule: Any
    rewards: RewardSet
    rows: Sequence[Row]
    conds: Sequence[Cond]
    pairs: Pairs | None = None
    """Given preferences, instead of rollouts and rewards."""
    encode_ahead: Callable[[int, Interrupt], None] = lambda epoch, interrupt: None
    """Sees to it that the conditions of an epoch's rows, and of some epochs after, are there."""
    interrupt: Interrupt = field(default_factory=Interrupt)
    progress: Progress = field(default_factory=Progress)
    identity: dict[str, Any] = field(default_factory=dict)
    """Whose run a saved state is; see `identity.identity_of`."""

    def __post_init__(self) -> None:
        self.meter = Meter(self.accelerator, self.config.model.context_parallel)
        if (vae := getattr(self.adapter.pipe, "vae", None)) is not None:
            vae.decode = self.meter.decoding(vae.decode)
        self.watch, self.silence = Watch(self.config), Silence()
        self.call = pipeline_kwargs(self.config.train)
        self.learner = Learner(
            self.config.train, self.call, self.plan, self.accelerator, self.adapter, self.engine, self.store, self.algorithm, self.schedule,
            self.meter, self.progress,
        )  # fmt: skip
        self.together = None if self.config.train.rollout_batch_size == "auto" else self.plan.drawn_together
        """Micro-batches that a rollout draws in one call."""
        self.shown: list[Sample] = []
        """The epoch's first samples, for the trackers."""
        self.cond: tuple[int, Cond, Cond] | None = None
        """Of the row that was drawn last: on the device, and as its rollouts keep it."""

    def epoch(self) -> dict[str, float]:
        """One epoch, as in the paper's algorithm box; returns what to log.

        Raises:
            Interrupted: before any weight of this epoch has changed.
            OnPolicyError, RewardError: see there.
        """
        self.meter.clear()
        with self.meter.phase("encode"):
            self.encode_ahead(self.progress.epoch, self.interrupt)
        rollouts = self.roll_out(self.progress.epoch)
        with self.meter.phase("rollout"):
            meet_again("rolling out")
        self.policy.set_aside()
        report = self.judge(rollouts)
        self.interrupt.agree(self.accelerator)
        if not self.plan.rolled.whole and self.algorithm.compares_group:
            wanted = {slot for slot, _ in self.plan.trained.of(self.accelerator.process_index)}
            with self.meter.phase("advantage"):
                rollouts = share(self.accelerator, rollouts, wanted, self.conds, waits=self.config.train.offload_samples_to_cpu)
        self.learner.learn(self.groups(rollouts))
        self.progress.epoch += 1
        self.average()
        rate = {"train/learning_rate": self.schedule.get_last_lr()[0]}
        means = self.meter.means()
        if self.accelerator.is_main_process:
            self.watch.look(means, self.progress.updates)
        return means | report | rate | self.meter.costs(self.plan.samples_per_epoch)

    def roll_out(self, epoch: int) -> list[Rollout]:
        """This process's micro-batches, each of one row."""
        train = self.config.train
        slots = rows_of_epoch(len(self.rows), train.unique_sample_num_per_epoch, train.seed, epoch)
        all_or_none(self.accelerator, self.interrupt, lambda: [self.rows[slot.row] for slot in slots])  # one may have been edited
        size, deal = train.per_device_batch_size, self.plan.rolled
        self.judging = Judging(self.accelerator, self.interrupt, self.meter, deal, self.rewards, size, self.config.log.num_samples)
        rollouts: list[Rollout] = []
        waiting: list[Rollout] = []  # those whose pictures no reward has seen
        if self.together is None:
            self.together = self.most_alike(slots[self.mine[0][0]], epoch)
        weights = self.algorithm.rolls_out(self.progress.updates)
        with self.meter.phase("rollout"), torch.no_grad(), self.store.use(weights), self.engine.gathered():
            for slot, members in quiet_bar(self.draws(), "rolling out", self.accelerator):
                if self.accelerator.num_processes == 1:  # several must stop at the same place
                    self.interrupt.check()
                drawn = self.sample(slots[slot], members, epoch) if self.pairs is None else self.given(slots[slot], epoch)
                look_at(waiting[-1:])  # while the device draws
                if self.pairs is not None:
                    self.judging.let_go(waiting[-1:])
                elif self.judging.due(waiting):
                    self.policy.set_aside()  # what only a rollout needs makes room for the rewards
                    rollouts += self.judging.heard(waiting)
                    waiting = []
                waiting.append(drawn)
                self.meter.step("call")
            look_at(waiting[-1:])
        self.cond = None
        return rollouts + [part for drawn in waiting for part in cut(drawn, size)]

    def draws(self) -> list[tuple[int, list[int]]]:
        """(group, members of it) that one call of the pipeline draws, for each call of this process: one micro-batch or several."""
        size, together = self.config.train.per_device_batch_size, self.together or 1
        taken = [(slot, [k for _, k in mine]) for slot, mine in groupby(self.mine, key=lambda m: m[0])]
        parts = [(slot, ks[i : i + together]) for slot, ks in taken for i in range(0, len(ks), together)]
        return [(slot, [k * size + j for k in ks for j in range(size)]) for slot, ks in parts]

    def most_alike(self, slot: Slot, epoch: int) -> int:
        """How many micro-batches of a group may be drawn in one call without changing a bit, by this run's own first group."""
        size, most = self.config.train.per_device_batch_size, self.plan.rolled.of_a_group
        shares = self.engine.collective or self.plan.rolled.team > 1
        with torch.no_grad():
            found = most_alike(
                lambda members: self.sample(slot, members, epoch), size, most, lambda same: not most_of_ranks(self.accelerator, not same),
                steps_down=not shares,
            )  # fmt: skip
        logger.info("train.rollout_batch_size: auto draws %d of the %d samples of a group in a call", found * size, most * size)
        return found

    def given(self, slot: Slot, epoch: int) -> Rollout:
        """A pair of the data set, as if it had been sampled: a group of two, the chosen one first."""
        assert self.pairs is not None
        row, (cond, kept) = self.rows[slot.row], self.cond_of(slot.row)
        with named_rows([row], self.adapter, "encode", RowError):
            x0, media = self.pairs.states(row, cond)
        rollout = Rollout(row, kept, [], media, slot.slot, epoch, (2 * slot.slot, 2 * slot.slot + 1), x0, memo=Memo())
        rollout.rewards, rollout.advantage = torch.tensor([[1.0], [0.0]]), torch.tensor([1.0, -1.0], device=x0.device)
        return rollout

    def sample(self, slot: Slot, members: Sequence[int], epoch: int) -> Rollout:
        """Some members of a group; their noise is keyed by (seed, epoch, global sample id) and depends on nothing else."""
        train = self.config.train
        ids = tuple(slot.slot * train.group_size + k for k in members)
        cond, kept = self.cond_of(slot.row)
        sampler = self.sampler(slot.slot, ids, epoch)
        starts = [slot.slot * train.group_size] * len(ids) if train.init_same_noise else ids
        generators = [generator(train.seed, "init", epoch, i) for i in starts]
        memo = Memo()
        row = self.rows[slot.row]
        with named_rows([row], self.adapter, "draw", RowError):
            media, recorder = self.engine("sample", cond, self.call, train.num_inference_steps, sampler, generators, memo)
        rollout = Rollout(row, kept, recorder.kept, media, slot.slot, epoch, ids, memo=memo)
        if not train.stochastic:
            rollout.x0 = recorder.final
            rollout.schedule = recorder.timesteps.cpu(), recorder.sigmas.cpu()
        if train.offload_samples_to_cpu:
            rollout.steps = [replace(s, **parked(vars(s))) for s in rollout.steps]
            rollout.x0 = parked(rollout.x0)
        return rollout

    def cond_of(self, row: int) -> tuple[Cond, Cond]:
        """(on the device, as rollouts keep it); read once for the micro-batches of a group, which follow each other, and which share it."""
        if self.cond is None or self.cond[0] != row:
            read = self.conds[row]
            here = moved(read, self.accelerator.device)
            self.cond = row, here, read if self.config.train.offload_samples_to_cpu else here
        return self.cond[1:]

    def sampler(self, slot: int, ids: Sequence[int], epoch: int) -> Sampler:
        """How the states of these samples of a group are drawn."""
        train, scheduler, algorithm = self.config.train, self.config.scheduler, self.algorithm

        def noise(index: int, x: Tensor, purpose: str) -> Tensor:
            drawn = torch.stack([normal(x.shape[1:], torch.float32, "cpu", train.seed, purpose, epoch, i, index) for i in ids])
            return moved(drawn.pin_memory() if x.is_cuda else drawn, x.device)  # behind what the device still has to do, not after it

        return Sampler(
            DYNAMICS[scheduler.dynamics_type], scheduler.noise_level, algorithm.noisy(epoch, slot), noise,
            DTYPES[train.latent_storage_dtype], kept=algorithm.kept(epoch, slot), with_mean=algorithm.with_mean,
        )  # fmt: skip

    def judge(self, rollouts: list[Rollout]) -> dict[str, float]:
        """Fills in `Rollout.rewards` and `Rollout.advantage`, where they are not given, and lets go of the pictures; what to log."""
        report = {}
        if self.pairs is None:
            report = self.score(rollouts)
            with self.meter.phase("advantage"):
                self.weigh(rollouts)
        names = self.rewards.names if self.pairs is None else ("chosen",)
        shown = ((r.row.prompt, media, row) for r in rollouts for media, row in zip(r.media, r.rewards.tolist(), strict=False))
        self.shown = [Sample(p, m, dict(zip(names, s, strict=True))) for p, m, s in islice(shown, self.config.log.num_samples)]
        for rollout in rollouts:
            rollout.media = []
        return report

    def score(self, rollouts: list[Rollout]) -> dict[str, float]:
        """Fills in `Rollout.rewards`, of which those that were drawn last are not judged yet; what to log."""
        self.judging.finish(rollouts)
        return {f"train/{k}": v for k, v in self.rewards.finish_epoch().items()}

    def weigh(self, rollouts: list[Rollout]) -> None:
        """Fills in `Rollout.advantage`, from the statistics of all processes' groups in the order of their slots."""
        train, size = self.config.train, self.config.train.per_device_batch_size
        scores = gather_groups(self.accelerator, self.plan.rolled, torch.stack([r.rewards for r in rollouts]).double())
        weights = torch.tensor(self.rewards.weights, dtype=torch.float64)
        advantage, metrics = AGGREGATIONS[train.advantage_aggregation](scores, weights, train.global_std)
        for rollout, (slot, k) in zip(rollouts, self.mine, strict=True):
            here = slice(k * size, (k + 1) * size)
            rollout.rewards, rollout.advantage = scores[slot, here].float(), advantage[slot, here].to(self.accelerator.device)
        for name, column in zip(self.rewards.names, scores.flatten(0, 1).T, strict=True):
            known = column[~column.isnan()]
            metrics |= {f"reward_{name}_mean": known.mean(), f"reward_{name}_std": known.std(correction=0)}
        told = varies(scores, scores.isfinite()).any(0).flatten().tolist()
        if self.accelerator.is_main_process and (line := self.silence.look(self.rewards.names, self.rewards.weights, told, len(scores))):
            logger.warning(line)
        self.meter.add(metrics | {"reward_mean": (scores.nanmean((0, 1)) * weights).sum()})

    def groups(self, rollouts: list[Rollout]) -> list[list[Rollout]]:
        """This process's micro-batches of each group."""
        return [list(group) for _, group in groupby(rollouts, key=lambda r: r.slot)]

    @property
    def mine(self) -> list[tuple[int, int]]:
        """(group, number in it) of this process's micro-batches."""
        return self.plan.rolled.of(self.accelerator.process_index)

    def average(self) -> None:
        """Moves the EMA, every `ema_update_interval` epochs."""
        decay = decay_after(self.config.train, self.progress.epoch)
        if decay is not None:
            self.store.blend("ema", decay)

    def state(self) -> dict[str, Any]:
        """What is kept beside the training state's tensors."""
        return asdict(self.progress) | {"run": self.identity}

    @property
    def policy(self) -> Policy:
        """What is trained."""
        return self.engine.policy


def look_at(rollouts: Sequence[Rollout]) -> None:
    """Makes their pictures, see `readback`."""
    for rollout in rollouts:
        rollout.media = list(rollout.media)
