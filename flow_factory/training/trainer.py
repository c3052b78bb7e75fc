"""The training loop: roll out, score, compute advantages, learn."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import groupby, islice
from typing import Any

import torch

from flow_factory.config import GateConfig
from flow_factory.config.datasets import trained_on
from flow_factory.core.ema import decay_after
from flow_factory.data.several import dataset_of
from flow_factory.data.thumbnails import condition_pictures
from flow_factory.distributed.barriers import wait_for_everyone
from flow_factory.distributed.collectives import agree, gather_groups
from flow_factory.distributed.shared_groups import share
from flow_factory.training.advantages import Advantages
from flow_factory.training.context import TrainingContext
from flow_factory.training.health import TrainingHealth
from flow_factory.training.kl_gate import KLGate
from flow_factory.training.learner import Learner
from flow_factory.training.overlap import AdvantagesInTime, require_independence
from flow_factory.training.rollout import RolloutCollector
from flow_factory.training.throughput import Work, peak_of_device, rates, work_of
from flow_factory.types import Rollout, Row, Sample
from flow_factory.utils.signals import Interrupt

logger = logging.getLogger(__name__)


@dataclass
class Trainer:
    """The order of the phases. `train.build` makes all parts."""

    context: TrainingContext
    encode_ahead: Callable[[int, Interrupt], None] = lambda epoch, interrupt: None
    """Encodes the rows of an epoch, and of some later epochs, if they are not encoded yet."""
    identity: dict[str, Any] = field(default_factory=dict)
    """The identity of the run in a saved state; see `identity.identity_of`."""

    def __post_init__(self) -> None:
        context = self.context
        if (vae := getattr(context.adapter.pipe, "vae", None)) is not None:
            vae.decode = context.meter.decoding(vae.decode)
        self.watch = TrainingHealth(context.config)
        datasets = [dataset.name for dataset in trained_on(context.config)]
        self.advantages = Advantages(context.config.train, context.rewards, datasets)
        self.overlaps = context.config.train.reward_optimization_overlap
        for of_dataset in self.advantages.of.values() if self.overlaps else ():
            shape = max(2, context.plan.groups), context.plan.group_size, len(context.rewards.names)
            require_independence(of_dataset, shape, context.config.train.advantage_aggregation)
        self.collector, self.learner = RolloutCollector(context), Learner(context)
        train = context.config.train
        self.gate = KLGate(context, train) if isinstance(train, GateConfig) else None
        self.midway = False
        """Whether weights have changed in an unfinished epoch."""
        self.work: dict[str, Work] = {}
        """Phase -> work of the transformers, known after the first rollout."""
        self.peak = peak_of_device(context.accelerator.device, context.config.mixed_precision)
        self.shown: list[Sample] = []
        """The epoch's first samples, for the trackers."""

    def epoch(self) -> dict[str, float]:
        """One epoch, as in the algorithm box of the papers. Returns metrics.

        Raises:
            Interrupted: before any weight of this epoch has changed.
            OnPolicyError, RewardError: see these classes.
        """
        context, meter, progress = self.context, self.context.meter, self.context.progress
        meter.clear()
        with meter.phase("encode"):
            self.encode_ahead(progress.epoch, context.interrupt)
        with context.rewards.dropping():
            rollouts = self.collector(progress.epoch)
            with meter.phase("rollout"):
                wait_for_everyone("rolling out")
            self.work = self.work or work_of(context, rollouts[0].cond)
            context.policy.offload_idle()
            report = self.learn_while_scoring(rollouts) if self.overlaps else self.judge(rollouts)
        if not self.overlaps:
            self.learn(rollouts)
        self.collector.forget()
        progress.epoch += 1
        self.midway = False
        self.average()
        if self.gate is not None:
            self.gate.finish()
        return report | self.measured()

    def learn(self, rollouts: list[Rollout]) -> None:
        """Trains on samples with known advantages."""
        context, plan = self.context, self.context.plan
        agree(context.accelerator, context.interrupt)
        if not plan.rolled.whole and context.algorithm.compares_group:
            with context.meter.phase("advantage"):
                waits = context.config.train.offload_samples_to_cpu
                rollouts = share(context.accelerator, plan.trained, rollouts, context.conds, waits=waits)
        self.learner.learn(self.groups(rollouts))

    def learn_while_scoring(self, rollouts: list[Rollout]) -> dict[str, float]:
        """As `judge` and `learn`, but trains on each window of groups as soon as it has its scores."""
        judging = self.collector.judging
        in_time = AdvantagesInTime(self.context, judging, rollouts, partial(self.advantages, datasets=self.datasets()))

        def before(batches: Sequence[Rollout]) -> None:
            if not self.learner.fresh:
                self.midway = True
                judging.ignore_signals()
            in_time(batches)

        judging.complete_with(rollouts)
        agree(self.context.accelerator, self.context.interrupt)
        self.learner.learn(self.groups(rollouts), before)
        self.midway = True
        judging.ignore_signals()
        return self.judge(rollouts)

    def measured(self) -> dict[str, float]:
        """The metrics of the finished epoch."""
        context, meter = self.context, self.context.meter
        rate = {"train/learning_rate": float(context.schedule.get_last_lr()[0])}
        means = meter.means()
        if context.accelerator.is_main_process:
            self.watch.look(means, context.progress.updates)
        costs, dropped = meter.costs(context.plan.samples_per_epoch), means.get("train/dropped_share", 0.0)
        return means | rate | costs | rates(costs, self.work, context.accelerator.num_processes, self.peak, dropped)

    def judge(self, rollouts: list[Rollout]) -> dict[str, float]:
        """Sets `Rollout.rewards` and `Rollout.advantage`, except for media of the data set. Returns metrics."""
        report: dict[str, float] = {}
        if not self.context.config.train.judged and self.context.given is None:
            for rollout in rollouts:
                n = len(rollout.ids)
                rollout.rewards, rollout.advantage = torch.empty(n, 0), torch.zeros(n, device=self.context.accelerator.device)
        elif self.context.judged:
            report = self.score(rollouts)
            with self.context.meter.phase("advantage"):
                self.compute_advantages(rollouts)
        shown = (
            Sample(r.row.prompt, m, self.scores_by_name(r.row, s), a, r.group, condition_pictures(r.row))
            for r in rollouts
            for m, s, a in judged_media(r)
        )
        self.shown = list(islice(shown, self.context.config.log.num_samples))
        return report

    def scores_by_name(self, row: Row, scores: Sequence[float]) -> dict[str, float]:
        """Reward -> score of a sample, for the rewards of its data set."""
        if self.context.given is not None:
            return dict(zip(self.context.given.columns[:1], scores, strict=True))
        judged = zip(self.context.rewards.rewards, scores, strict=True)
        return {reward.name: score for reward, score in judged if reward.scores(row.dataset)}

    def score(self, rollouts: list[Rollout]) -> dict[str, float]:
        """Sets `Rollout.rewards`, after scoring the samples that were drawn last. Returns metrics."""
        self.collector.judging.finish(rollouts)
        return {f"train/{k}": v for k, v in self.context.rewards.finish_epoch().items()}

    def compute_advantages(self, rollouts: list[Rollout]) -> None:
        """Sets `Rollout.advantage` from the statistics of all groups of all processes, in the order of the epoch."""
        context, size = self.context, self.context.config.train.per_device_batch_size
        scores = gather_groups(context.accelerator, context.plan.rolled, torch.stack([r.rewards for r in rollouts]).double())
        advantage, metrics = self.advantages(scores, self.datasets())
        for rollout, (group, k) in zip(rollouts, self.collector.mine, strict=True):
            here = slice(k * size, (k + 1) * size)
            rollout.rewards, rollout.advantage = scores[group, here].float(), advantage[group, here].to(context.accelerator.device)
        if self.gate is not None and self.gate.train.kl_gate_share is not None:
            weight, gate_metrics = self.gate.weights(self.advantages.doubts(scores, self.datasets()))
            metrics |= gate_metrics
            for rollout, (group, k) in zip(rollouts, self.collector.mine, strict=True):
                rollout.kl_weight = weight[group, k * size : (k + 1) * size]
        if context.algorithm.through_sampler:  # it does not compare samples
            metrics = {name: value for name, value in metrics.items() if "zero_variance_share" not in name}
        elif context.accelerator.is_main_process:
            for line in self.advantages.silent():
                logger.warning(line)
        context.meter.add(metrics)

    def datasets(self) -> list[str]:
        """The data set of each group of the epoch."""
        return [dataset_of(self.context.rows, group.row) for group in self.collector.epoch_groups(self.context.progress.epoch)]

    def groups(self, rollouts: list[Rollout]) -> list[list[Rollout]]:
        """This process's micro-batches, by group."""
        return [list(group) for _, group in groupby(rollouts, key=lambda r: r.group)]

    def average(self) -> None:
        """Updates the EMA every `ema_update_interval` epochs."""
        decay = decay_after(self.context.config.train, self.context.progress.epoch)
        if decay is not None:
            self.context.store.blend("ema", decay)

    def state(self) -> dict[str, Any]:
        """The part of the training state that is not tensors."""
        return asdict(self.context.progress) | {"run": self.identity}


def judged_media(rollout: Rollout) -> Iterator[tuple[Any, list[float], float]]:
    """(picture or clip, scores, advantage) of the samples whose media are kept."""
    return zip(rollout.media, rollout.rewards.tolist(), rollout.advantage.tolist(), strict=False)
