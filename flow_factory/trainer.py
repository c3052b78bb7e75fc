"""The one loop: roll out, score, advantages, optimise."""

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils._pytree import tree_map_only
from tqdm import tqdm

from flow_factory.advantage import AGGREGATIONS
from flow_factory.algorithms.base import Algorithm, OnPolicyError
from flow_factory.config import BatchPlan, EvalConfig, RunConfig, TrainConfig
from flow_factory.data.order import Slot, rows_of_epoch
from flow_factory.distributed import gather_slots
from flow_factory.dynamics import DYNAMICS
from flow_factory.ema import ema_decay
from flow_factory.interrupt import Interrupt
from flow_factory.memo import Memo
from flow_factory.meter import Meter
from flow_factory.models.base import ModelAdapter
from flow_factory.models.loading import DTYPES
from flow_factory.policy import Policy
from flow_factory.randomness import generator, normal
from flow_factory.rewards.scoring import RewardSet
from flow_factory.sampling import Sampler
from flow_factory.types import Cond, Point, Rollout, Row, Sample
from flow_factory.weights import WeightStore

logger = logging.getLogger(__name__)


@dataclass
class Progress:
    """How far the run has come; saved with the training state."""

    epoch: int = 0
    """The next epoch; all before it are complete."""
    updates: int = 0
    """Optimiser steps taken."""


@dataclass
class Trainer:
    """Everything is built outside (`train.build`) and handed in; this class only knows the order of things."""

    config: RunConfig
    plan: BatchPlan
    accelerator: Accelerator
    adapter: ModelAdapter
    policy: Policy
    """Bare; `wrapped` is what accelerate made of it."""
    wrapped: Any
    store: WeightStore
    algorithm: Algorithm
    optimizer: Any
    schedule: Any
    rewards: RewardSet
    rows: Sequence[Row]
    conds: Sequence[Cond]
    interrupt: Interrupt = field(default_factory=Interrupt)
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        self.meter = Meter(self.accelerator)
        self.call = call_of(self.config.train)
        self.shown: list[Sample] = []
        """The epoch's first samples, for the trackers."""

    def epoch(self) -> dict[str, float]:
        """One epoch, as in the paper's algorithm box; returns what to log.

        Raises:
            Interrupted: before any weight of this epoch has changed.
            OnPolicyError, RewardError: see there.
        """
        self.meter.clear()
        rollouts = self.roll_out(self.progress.epoch)
        report = self.score(rollouts)
        self.weigh(rollouts)
        self.interrupt.agree(self.accelerator)
        self.optimise(rollouts)
        self.progress.epoch += 1
        self.average()
        rate = {"train/learning_rate": self.schedule.get_last_lr()[0]}
        return self.meter.means() | report | rate | self.meter.costs(self.plan.samples_per_epoch)

    def roll_out(self, epoch: int) -> list[Rollout]:
        """Every group of this process's rows, in micro-batches of one row."""
        train, rank = self.config.train, self.accelerator.process_index
        noisy = self.algorithm.noisy(epoch)
        slots = rows_of_epoch(len(self.rows), train.unique_sample_num_per_epoch, train.seed, epoch, rank, self.accelerator.num_processes)
        batches = [(slot, k) for slot in slots for k in range(0, train.group_size, train.per_device_batch_size)]
        rollouts = []
        with self.meter.phase("rollout"), torch.no_grad():
            for slot, k in self.bar(batches, "rolling out"):
                if self.accelerator.num_processes == 1:  # several must stop at the same place
                    self.interrupt.check()
                rollouts.append(self.sample(slot, range(k, k + train.per_device_batch_size), noisy, epoch))
        return rollouts

    def sample(self, slot: Slot, members: range, noisy: tuple[int, ...], epoch: int) -> Rollout:
        """Some members of a group; their noise is keyed by (seed, epoch, global sample id) and depends on nothing else."""
        train, scheduler = self.config.train, self.config.scheduler
        ids = [slot.slot * train.group_size + k for k in members]
        cond = moved(self.conds[slot.row], self.accelerator.device)

        def noise(index: int, x: Tensor, purpose: str) -> Tensor:
            return torch.stack([normal(x.shape[1:], torch.float32, "cpu", train.seed, purpose, epoch, i, index) for i in ids]).to(x.device)

        sampler = Sampler(DYNAMICS[scheduler.dynamics_type], scheduler.noise_level, noisy, noise, DTYPES[train.latent_storage_dtype])
        starts = [slot.slot * train.group_size] * len(ids) if train.init_same_noise else ids
        generators = [generator(train.seed, "init", epoch, i) for i in starts]
        memo = Memo()
        media, recorder = self.wrapped("sample", cond, self.call, train.num_inference_steps, sampler, generators, memo)
        steps = [replace(s, **moved(vars(s), "cpu")) for s in recorder.kept] if train.offload_samples_to_cpu else recorder.kept
        return Rollout(self.rows[slot.row], cond, steps, media, slot.slot, memo)

    def score(self, rollouts: list[Rollout]) -> dict[str, float]:
        """Fills in `Rollout.rewards` (groups are whole here, as groupwise rewards need them) and lets go of the pictures."""
        train = self.config.train
        groups = self.groups(rollouts)
        with self.meter.phase("reward"):
            scores = self.rewards.score([g[0].row for g in groups], [[m for r in g for m in r.media] for g in groups])
        for group, rewards in zip(groups, scores, strict=True):
            for rollout, part in zip(group, rewards.split(train.per_device_batch_size), strict=True):
                rollout.rewards = part
        shown = ((r.row.prompt, media, row) for r in rollouts for media, row in zip(r.media, r.rewards.tolist(), strict=True))
        self.shown = [Sample(p, m, dict(zip(self.rewards.names, s, strict=True))) for p, m, s in islice(shown, self.config.log.num_samples)]
        for rollout in rollouts:
            rollout.media = []
        return {f"train/{k}": v for k, v in self.rewards.finish_epoch().items()}

    def weigh(self, rollouts: list[Rollout]) -> None:
        """Fills in `Rollout.advantage`, from the statistics of all processes' groups in the order of their slots."""
        train = self.config.train
        groups = self.groups(rollouts)
        mine = torch.stack([torch.cat([r.rewards for r in g]) for g in groups]).double()
        scores = gather_slots(self.accelerator, mine)
        weights = torch.tensor(self.rewards.weights, dtype=torch.float64)
        advantage, metrics = AGGREGATIONS[train.advantage_aggregation](scores, weights, train.global_std)
        for group in groups:
            parts = advantage[group[0].slot].to(self.accelerator.device).split(train.per_device_batch_size)
            for rollout, part in zip(group, parts, strict=True):
                rollout.advantage = part
        for name, column in zip(self.rewards.names, scores.flatten(0, 1).T, strict=True):
            here = column[~column.isnan()]
            metrics |= {f"reward_{name}_mean": here.mean(), f"reward_{name}_std": here.std(correction=0)}
        self.meter.add(metrics | {"reward_mean": (scores.nanmean((0, 1)) * weights).sum()})

    def groups(self, rollouts: list[Rollout]) -> list[list[Rollout]]:
        """The micro-batches of each group."""
        n = self.config.train.group_size // self.config.train.per_device_batch_size
        return [rollouts[k : k + n] for k in range(0, len(rollouts), n)]

    def optimise(self, rollouts: list[Rollout]) -> None:
        """`num_inner_epochs` passes over all training points, an optimiser step after each window of them."""
        points = [p for r in rollouts for p in self.algorithm.points(r)]
        size = self.plan.micro_batches_per_update * self.plan.trained_steps
        windows = [points[k : k + size] for k in range(0, len(points), size)] * self.config.train.num_inner_epochs
        with self.meter.phase("optimise"):
            self.look_back(points)
            for k, window in enumerate(self.bar(windows, "optimising")):
                self.update(window, first=k == 0)

    def look_back(self, points: list[Point]) -> None:
        """The velocities under kept weights, all in one pass: the weights are swapped once, and inner epochs share the forwards."""
        store_on = "cpu" if self.config.train.offload_samples_to_cpu else self.accelerator.device
        for name in self.algorithm.weights:
            with torch.no_grad(), self.store.use(name):
                for point in points:
                    point.frozen[name] = self.velocity(self.here(point)).to(store_on)

    def update(self, window: list[Point], first: bool) -> None:
        """One optimiser step on the mean loss of the window's points; `first` of the epoch is checked to be on-policy."""
        for k, point in enumerate(window):
            last = k == len(window) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                loss, metrics = self.algorithm.loss(self.here(point), self.velocity)
                if first and k == 0:
                    self.check_on_policy(metrics)
                self.accelerator.backward(loss / len(window))
            self.meter.add(metrics)
        norm = self.accelerator.clip_grad_norm_(self.policy.trained().values(), self.config.train.max_grad_norm)
        rate = self.schedule.get_last_lr()[0]
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.progress.updates == 0 and rate > 0:
            self.check_effect(window[0])
        self.progress.updates += 1
        self.meter.add({"grad_norm": torch.as_tensor(norm)})

    def velocity(self, point: Point, weights: str = "policy") -> Tensor:
        """See `types.Velocity`."""
        if weights != "policy":
            return point.frozen[weights]
        return self.wrapped("velocity", point.x, point.t, point.s, point.cond, self.call, point.memo)

    def here(self, point: Point) -> Point:
        """The point on this process's device, from wherever it was kept."""
        device = self.accelerator.device
        step = replace(point.step, **moved(vars(point.step), device)) if point.step is not None else None
        return replace(point, **moved({**vars(point), "step": None}, device) | {"step": step})

    def check_on_policy(self, metrics: dict[str, Tensor]) -> None:
        """Before the first update of an epoch, training must see what sampling saw.

        Raises:
            OnPolicyError: it is further off than a tenth of the clip range.
        """
        error, most = self.algorithm.on_policy_error(metrics)
        self.meter.add({"on_policy_error": error})
        if not error.item() <= most:
            raise OnPolicyError(
                f"epoch {self.progress.epoch}: before any update the ratio is off 1 by {error.item():.2e}, more than a tenth of the clip "
                f"range ({most:.1e}): training does not see what sampling saw. On a GPU whose kernels differ with and without gradient "
                "this is the floor below which no clip range can work: try model.attn_backend: native, model.compile: false, or a wider "
                "train.clip_range"
            )

    def check_effect(self, point: Point) -> None:
        """After the run's first update, the same point must have another ratio: a stale copy of the weights would keep it at 1 for ever."""
        with torch.no_grad():
            _, metrics = self.algorithm.loss(self.here(point), self.velocity)
        error, _ = self.algorithm.on_policy_error(metrics)
        self.meter.add({"first_update_effect": error})
        if error.item() == 0 and self.meter.values["zero_variance_share"][-1].item() < 1:
            logger.warning("the first optimiser step changed no log-probability: the learning rate is too small for the weights' dtype")

    def average(self) -> None:
        """Moves the EMA, every `ema_update_interval` epochs."""
        train, done = self.config.train, self.progress.epoch
        if "ema" in self.store.copies and done % train.ema_update_interval == 0:
            extras = {k: getattr(train, k) for k in ("initial_decay", "warmup_steps", "flat_steps", "ramp_rate")}
            total = train.total_steps or train.max_epochs or 1
            self.store.blend("ema", ema_decay(train.ema_decay_schedule, done - 1, train.ema_decay, total_steps=total, **extras))

    def state(self) -> dict[str, Any]:
        """What `checkpoint.save_state` keeps beside weights and optimiser."""
        return asdict(self.progress)

    def bar(self, items: list, doing: str) -> Any:
        """A progress bar that leaves nothing behind, for the parts of a long epoch."""
        return tqdm(items, doing, leave=False, disable=None if self.accelerator.is_main_process else True, delay=5)


def call_of(section: TrainConfig | EvalConfig) -> dict[str, Any]:
    """The section's arguments for the pipeline's `__call__`."""
    return {"height": section.height, "width": section.width, "guidance_scale": section.guidance_scale, **section.call}


def moved(tensors: Any, device: torch.device | str) -> Any:
    """The same structure with its tensors on the device."""
    return tree_map_only(Tensor, lambda x: x.to(device), tensors)
