"""The one loop: roll out, score, advantages, optimise; evaluate and save on the way."""

import logging
import resource
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
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
from flow_factory.distributed import gather_slots, mean_over_ranks
from flow_factory.dynamics import DYNAMICS
from flow_factory.ema import ema_decay
from flow_factory.interrupt import Interrupt
from flow_factory.models.base import ModelAdapter
from flow_factory.policy import DTYPES, Policy
from flow_factory.randomness import generator, normal
from flow_factory.rewards.scoring import RewardSet
from flow_factory.sampling import Sampler
from flow_factory.types import Cond, Point, Rollout, Row, Sample, Step
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
        self.metrics: dict[str, list[Tensor]] = defaultdict(list)
        self.seconds: dict[str, float] = defaultdict(float)
        self.call = call_of(self.config.train)
        self.shown: list[Sample] = []

    def epoch(self) -> dict[str, float]:
        """One epoch, as in the paper's algorithm box; returns what to log.

        Raises:
            Interrupted: before any weight of this epoch has changed.
            OnPolicyError, RewardError: see there.
        """
        self.metrics.clear()
        self.seconds.clear()
        rollouts = self.roll_out(self.progress.epoch)
        self.score(rollouts)
        self.weigh(rollouts)
        self.interrupt.check()
        self.optimise(rollouts)
        self.progress.epoch += 1
        self.average()
        return self.summary()

    # -- roll out ---------------------------------------------------------------------------------------------------------------

    def roll_out(self, epoch: int) -> list[Rollout]:
        """Every group of this process's rows, in micro-batches of one row."""
        train, rank = self.config.train, self.accelerator.process_index
        noisy = self.algorithm.noisy(epoch)
        slots = rows_of_epoch(len(self.rows), train.unique_sample_num_per_epoch, train.seed, epoch, rank, self.accelerator.num_processes)
        batches = [(slot, k) for slot in slots for k in range(0, train.group_size, train.per_device_batch_size)]
        rollouts = []
        with self.phase("rollout"), torch.no_grad():
            for slot, k in self.bar(batches, "rolling out"):
                self.interrupt.check()
                rollouts.append(self._sample(slot, range(k, k + train.per_device_batch_size), noisy, epoch))
        return rollouts

    def _sample(self, slot: Slot, members: range, noisy: tuple[int, ...], epoch: int) -> Rollout:
        """Some members of a group; their noise is keyed by (seed, epoch, global sample id) and depends on nothing else."""
        train, scheduler = self.config.train, self.config.scheduler
        ids = [slot.slot * train.group_size + k for k in members]
        cond = tree_map_only(Tensor, lambda x: x.to(self.accelerator.device), self.conds[slot.row])

        def noise(index: int, x: Tensor) -> Tensor:
            return torch.stack([normal(x.shape[1:], torch.float32, "cpu", train.seed, "sde", epoch, i, index) for i in ids]).to(x.device)

        sampler = Sampler(DYNAMICS[scheduler.dynamics_type], scheduler.noise_level, noisy, noise, DTYPES[train.latent_storage_dtype])
        generators = [generator(train.seed, "init", epoch, i) for i in ids]
        media, recorder = self.wrapped("sample", cond, self.call, train.num_inference_steps, sampler, generators)
        steps = self.moved(recorder.kept, "cpu") if train.offload_samples_to_cpu else recorder.kept
        return Rollout(self.rows[slot.row], cond, steps, media, slot=slot.slot)

    # -- score ------------------------------------------------------------------------------------------------------------------

    def score(self, rollouts: list[Rollout]) -> None:
        """Fills in `Rollout.rewards`: groups are whole here, as groupwise rewards need them."""
        with self.phase("reward"):
            groups = self.groups(rollouts)
            scores = self.rewards.score([g[0].row for g in groups], [[m for r in g for m in r.media] for g in groups])
        for group, rewards in zip(groups, scores, strict=True):
            for rollout, part in zip(group, rewards.split(self.config.train.per_device_batch_size), strict=True):
                rollout.rewards = part
        self.report = self.rewards.finish_epoch()
        self.show(rollouts)

    def show(self, rollouts: list[Rollout]) -> None:
        """Keeps the epoch's first pictures for the trackers, and lets go of the others."""
        pairs = ((r, media, row) for r in rollouts for media, row in zip(r.media, r.rewards.tolist(), strict=True))
        self.shown = [
            Sample(r.row.prompt, media, dict(zip(self.rewards.names, row, strict=True)))
            for r, media, row in islice(pairs, self.config.log.num_samples)
        ]
        for rollout in rollouts:
            rollout.media = []

    def weigh(self, rollouts: list[Rollout]) -> None:
        """Fills in `Rollout.advantage`, from the statistics of all processes' groups in the order of their slots."""
        train = self.config.train
        groups = self.groups(rollouts)
        mine = torch.stack([torch.cat([r.rewards for r in g]) for g in groups]).double()
        everyone = gather_slots(self.accelerator, mine)
        weights = torch.tensor(self.rewards.weights, dtype=torch.float64)
        weighed, metrics = AGGREGATIONS[train.advantage_aggregation](everyone, weights, train.global_std)
        for group in groups:
            parts = weighed[group[0].slot].to(self.accelerator.device).split(train.per_device_batch_size)
            for rollout, part in zip(group, parts, strict=True):
                rollout.advantage = part
        for k, name in enumerate(self.rewards.names):
            column = everyone[..., k]
            here = column[~column.isnan()]
            self.metrics[f"reward_{name}_mean"].append(here.mean())
            self.metrics[f"reward_{name}_std"].append(here.std(correction=0))
        self.metrics["reward_mean"].append((everyone.nanmean((0, 1)) * weights).sum())
        for name, value in metrics.items():
            self.metrics[name].append(value)

    def groups(self, rollouts: list[Rollout]) -> list[list[Rollout]]:
        """The micro-batches of each group."""
        n = self.config.train.group_size // self.config.train.per_device_batch_size
        return [rollouts[k : k + n] for k in range(0, len(rollouts), n)]

    # -- optimise ---------------------------------------------------------------------------------------------------------------

    def optimise(self, rollouts: list[Rollout]) -> None:
        """`num_inner_epochs` passes over all training points, an optimiser step every `points_per_update` of them."""
        points = [p for r in rollouts for p in self.algorithm.points(r)]
        size = self.plan.micro_batches_per_update * self.plan.trained_steps
        windows = [points[k : k + size] for k in range(0, len(points), size)] * self.config.train.num_inner_epochs
        with self.phase("optimise"):
            self.look_back(points)
            for k, window in enumerate(self.bar(windows, "optimising")):
                self.update(window, first=k == 0)

    def look_back(self, points: list[Point]) -> None:
        """The velocities under kept weights, all in one pass: the weights are swapped once, and inner epochs share the forwards."""
        for name in self.algorithm.weights:
            with torch.no_grad(), self.store.use(name):
                for point in points:
                    point.frozen[name] = self._ask(point)
                    if self.config.train.offload_samples_to_cpu:
                        point.frozen[name] = point.frozen[name].cpu()

    def update(self, window: list[Point], first: bool) -> None:
        """One optimiser step on the mean loss of the window's points."""
        for k, point in enumerate(window):
            last = k == len(window) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                loss, metrics = self.algorithm.loss(self.moved(point, self.accelerator.device), self.velocity)
                if first and k == 0:
                    self.check_on_policy(metrics)
                self.accelerator.backward(loss / len(window))
            for name, value in metrics.items():
                self.metrics[name].append(value)
        norm = self.accelerator.clip_grad_norm_(self.policy.trained().values(), self.config.train.max_grad_norm)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.progress.updates == 0 and self.schedule.get_last_lr()[0] > 0:
            self.check_effect(window[0])
        self.progress.updates += 1
        self.metrics["grad_norm"].append(torch.as_tensor(norm))

    def velocity(self, point: Point, weights: str = "policy") -> Tensor:
        """See `types.Velocity`."""
        return self._ask(point) if weights == "policy" else point.frozen[weights]

    def _ask(self, point: Point) -> Tensor:
        return self.wrapped("velocity", point.x, point.t, point.s, point.cond, self.call)

    def check_on_policy(self, metrics: dict[str, Tensor]) -> None:
        """Before the first update of an epoch, training must see what sampling saw.

        Raises:
            OnPolicyError: it is further off than a tenth of the clip range.
        """
        error, most = self.algorithm.on_policy_error(metrics)
        self.metrics["on_policy_error"].append(error)
        if not error.item() <= most:
            raise OnPolicyError(
                f"epoch {self.progress.epoch}: before any update the ratio is off 1 by {error.item():.2e}, more than a tenth of the clip "
                f"range ({most:.1e}): training does not see what sampling saw. On a GPU whose kernels differ with and without gradient, this is "
                "the floor below which no clip range can work: try model.attn_backend: native, model.compile: false, or a wider train.clip_range."
            )

    def check_effect(self, point: Point) -> None:
        """After the run's first update, the same point must have another ratio: a stale copy of the weights would keep it at 1 for ever."""
        with torch.no_grad():
            _, metrics = self.algorithm.loss(self.moved(point, self.accelerator.device), self.velocity)
        error, _ = self.algorithm.on_policy_error(metrics)
        self.metrics["first_update_effect"].append(error)
        if error.item() == 0 and self.metrics["zero_variance_share"][-1].item() < 1:
            logger.warning("the first optimiser step changed no log-probability: the learning rate is too small for the weights' dtype")

    def average(self) -> None:
        """Moves the EMA, every `ema_update_interval` epochs."""
        train = self.config.train
        done = self.progress.epoch
        if "ema" in self.store.copies and done % train.ema_update_interval == 0:
            extras = {k: getattr(train, k) for k in ("initial_decay", "warmup_steps", "flat_steps", "ramp_rate")}
            total = train.total_steps or train.max_epochs or 1
            self.store.blend("ema", ema_decay(train.ema_decay_schedule, done - 1, train.ema_decay, total_steps=total, **extras))

    # -- bookkeeping ------------------------------------------------------------------------------------------------------------

    def summary(self) -> dict[str, float]:
        """The epoch's metrics, averaged over points and processes; one device sync."""
        means = {
            f"train/{k}": torch.cat([v.reshape(-1).float().to(self.accelerator.device) for v in values]).mean()
            for k, values in self.metrics.items()
        }
        ratio = torch.cat([r.reshape(-1) for r in self.metrics["ratio"]]) if "ratio" in self.metrics else None
        if ratio is not None and len(ratio) > 1:
            means["train/ratio_std"] = ratio.float().std()
        out = mean_over_ranks(self.accelerator, means)
        out |= {f"train/{k}": v for k, v in self.report.items()}
        out["train/learning_rate"] = self.schedule.get_last_lr()[0]
        total = sum(self.seconds.values())
        out |= {f"time/{phase}_s": s for phase, s in self.seconds.items()} | {"time/epoch_s": total}
        out["perf/samples_per_s"] = self.plan.samples_per_epoch / total
        out["perf/peak_memory_gb"] = peak_memory_gb(self.accelerator.device)
        return out

    def state(self) -> dict[str, Any]:
        """What `checkpoint.save_state` keeps beside weights and optimiser."""
        return asdict(self.progress)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if self.accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds[name] += time.perf_counter() - start

    def bar(self, items: list, doing: str) -> Any:
        """A progress bar that leaves nothing behind, for the parts of a long epoch."""
        return tqdm(items, doing, leave=False, disable=None if self.accelerator.is_main_process else True, delay=5)

    @staticmethod
    def moved(thing: Any, device: torch.device | str) -> Any:
        """A record (or list of them) with its tensors on the device."""
        if isinstance(thing, list):
            return [Trainer.moved(t, device) for t in thing]
        if isinstance(thing, Tensor):
            return thing.to(device)
        if isinstance(thing, dict):
            return {k: Trainer.moved(v, device) for k, v in thing.items()}
        if isinstance(thing, (Step, Point)):
            return replace(thing, **{k: Trainer.moved(v, device) for k, v in vars(thing).items()})
        return thing


def call_of(section: TrainConfig | EvalConfig) -> dict[str, Any]:
    """The section's arguments for the pipeline's `__call__`."""
    return {"height": section.height, "width": section.width, "guidance_scale": section.guidance_scale, **section.call}


def peak_memory_gb(device: torch.device) -> float:
    """Most memory held so far: the device's, or the process's on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
