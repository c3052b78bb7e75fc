"""The one loop: roll out, score, advantages, learn."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby, islice
from typing import Any

import torch
from accelerate import Accelerator

from flow_factory.algorithms.base import Algorithm
from flow_factory.config import BatchPlan, RunConfig, pipeline_kwargs
from flow_factory.core.advantage import aggregation, varies
from flow_factory.core.ema import decay_after
from flow_factory.data.pairs import Pairs
from flow_factory.distributed.barriers import wait_for_everyone
from flow_factory.distributed.collectives import agree, gather_groups
from flow_factory.distributed.engines import Engine
from flow_factory.distributed.shared_groups import share
from flow_factory.models.base import ModelAdapter
from flow_factory.policy.policy import Policy
from flow_factory.policy.weight_store import WeightStore
from flow_factory.rewards.scoring import RewardSet
from flow_factory.rewards.silence import ConstantRewards
from flow_factory.rewards.transform import transformed
from flow_factory.runs.training_state import Progress
from flow_factory.training.health import TrainingHealth
from flow_factory.training.learner import Learner
from flow_factory.training.meter import Meter
from flow_factory.training.rollout import Roller
from flow_factory.training.throughput import Work, peak_of_device, rates, work_of
from flow_factory.types import Cond, Rollout, Row, Sample
from flow_factory.utils.signals import Interrupt

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
        self.watch, self.silence = TrainingHealth(self.config), ConstantRewards()
        self.call = pipeline_kwargs(self.config.train)
        self.aggregate = aggregation(self.config.train.advantage_aggregation, self.rewards.names)
        model = self.adapter, self.engine, self.store, self.algorithm
        self.roller = Roller(
            self.config, self.call, self.plan, self.accelerator, *model, self.rewards, self.rows, self.conds, self.pairs, self.meter,
            self.progress, self.interrupt,
        )  # fmt: skip
        self.learner = Learner(
            self.config.train, self.call, self.plan, self.accelerator, *model, self.schedule, self.meter, self.progress, self.interrupt
        )
        self.work: dict[str, Work] = {}
        """Of an epoch, once its first rollout is done."""
        self.peak = peak_of_device(self.accelerator.device, self.config.mixed_precision)
        self.shown: list[Sample] = []
        """The epoch's first samples, for the trackers."""

    def epoch(self) -> dict[str, float]:
        """One epoch, as in the paper's algorithm box; returns what to log.

        Raises:
            Interrupted: before any weight of this epoch has changed.
            OnPolicyError, RewardError: see there.
        """
        self.meter.clear()
        with self.meter.phase("encode"):
            self.encode_ahead(self.progress.epoch, self.interrupt)
        with self.rewards.dropping():
            rollouts = self.roller(self.progress.epoch)
            with self.meter.phase("rollout"):
                wait_for_everyone("rolling out")
            self.work = self.work or work_of(self, rollouts[0].cond)
            self.policy.set_aside()
            report = self.judge(rollouts)
        agree(self.accelerator, self.interrupt)
        if not self.plan.rolled.whole and self.algorithm.compares_group:
            with self.meter.phase("advantage"):
                rollouts = share(self.accelerator, self.plan.trained, rollouts, self.conds, waits=self.config.train.offload_samples_to_cpu)
        self.learner.learn(self.groups(rollouts))
        self.roller.forget()
        self.progress.epoch += 1
        self.average()
        rate = {"train/learning_rate": self.schedule.get_last_lr()[0]}
        means = self.meter.means()
        if self.accelerator.is_main_process:
            self.watch.look(means, self.progress.updates)
        costs, dropped = self.meter.costs(self.plan.samples_per_epoch), means.get("train/dropped_share", 0.0)
        return means | report | rate | costs | rates(costs, self.work, self.accelerator.num_processes, self.peak, dropped)

    def judge(self, rollouts: list[Rollout]) -> dict[str, float]:
        """Fills in `Rollout.rewards` and `Rollout.advantage`, where they are not given; what to log."""
        report = {}
        if self.pairs is None:
            report = self.score(rollouts)
            with self.meter.phase("advantage"):
                self.weigh(rollouts)
        names = self.rewards.names if self.pairs is None else ("chosen",)
        shown = ((r.row.prompt, media, row) for r in rollouts for media, row in zip(r.media, r.rewards.tolist(), strict=False))
        self.shown = [Sample(p, m, dict(zip(names, s, strict=True))) for p, m, s in islice(shown, self.config.log.num_samples)]
        return report

    def score(self, rollouts: list[Rollout]) -> dict[str, float]:
        """Fills in `Rollout.rewards`, of which those that were drawn last are not judged yet; what to log."""
        self.roller.judging.finish(rollouts)
        return {f"train/{k}": v for k, v in self.rewards.finish_epoch().items()}

    def weigh(self, rollouts: list[Rollout]) -> None:
        """Fills in `Rollout.advantage`, from the statistics of all processes' groups in the order of their slots."""
        train, size = self.config.train, self.config.train.per_device_batch_size
        scores = gather_groups(self.accelerator, self.plan.rolled, torch.stack([r.rewards for r in rollouts]).double())
        weights = torch.tensor(self.rewards.weights, dtype=torch.float64)
        used = transformed(scores, [judge.config.transform for judge in self.rewards.judges])
        advantage, metrics = self.aggregate(used, weights, train.global_std)
        for rollout, (slot, k) in zip(rollouts, self.roller.mine, strict=True):
            here = slice(k * size, (k + 1) * size)
            rollout.rewards, rollout.advantage = scores[slot, here].float(), advantage[slot, here].to(self.accelerator.device)
        for name, column in zip(self.rewards.names, scores.flatten(0, 1).T, strict=True):
            known = column[~column.isnan()]
            metrics |= {f"reward_{name}_mean": known.mean(), f"reward_{name}_std": known.std(correction=0)}
        for judge, column in zip(self.rewards.judges, used.unbind(-1), strict=True):
            if judge.config.transform is not None:
                metrics[f"transformed_{judge.name}_mean"] = column.nanmean()
        told = varies(used, used.isfinite()).any(0).flatten().tolist()
        if self.accelerator.is_main_process and (line := self.silence.look(self.rewards.names, self.rewards.weights, told, len(scores))):
            logger.warning(line)
        self.meter.add(metrics | {"reward_mean": (scores.nanmean((0, 1)) * weights).sum()})

    def groups(self, rollouts: list[Rollout]) -> list[list[Rollout]]:
        """This process's micro-batches of each group."""
        return [list(group) for _, group in groupby(rollouts, key=lambda r: r.slot)]

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
