"""The arithmetic of an epoch: what is rolled out, what is trained on, and by which process."""

from dataclasses import dataclass
from math import gcd

from flow_factory.config.run import RunConfig


@dataclass(frozen=True)
class Deal:
    """The distribution of an epoch's micro-batches over the processes.

    An optimiser step learns from the same micro-batches whatever the number of processes: those that follow each other, group by group.
    A process takes whole groups where the steps' shares allow it, and single micro-batches in turn where they do not.
    """

    groups: int
    batches: int
    """The number of micro-batches of a group."""
    processes: int
    whole: bool
    team: int = 1
    """The number of consecutive processes that take the same micro-batches (`model.context_parallel`)."""

    @property
    def teams(self) -> int:
        return self.processes // self.team

    @property
    def of_a_group(self) -> int:
        """Micro-batches of a group that each process takes; 1 where they are of different numbers."""
        return self.batches if self.whole else max(1, self.batches // self.teams) if self.batches % self.teams == 0 else 1

    def submitted_at_once(self, size: int, fill: int) -> int:
        """Samples that a process draws before their rewards are asked for: whole groups, on every process, and at least `fill`.

        Args:
            size: samples of a micro-batch.
        """
        samples = size * (self.batches if self.whole else self.batches // gcd(self.batches, self.teams))
        return samples * -(-fill // samples)

    def leads(self, process: int) -> bool:
        """Whether this process speaks for its team where one answer is wanted."""
        return process % self.team == 0

    def holders(self, group: int) -> list[int]:
        """The processes that take its micro-batches, the first one of each team."""
        numbers = [group] if self.whole else range(group * self.batches, (group + 1) * self.batches)
        return sorted({number % self.teams * self.team for number in numbers})

    def of(self, process: int) -> list[tuple[int, int]]:
        """(group, number of the micro-batch in it), those of one process in the order in which it takes them."""
        every = ((group, k) for group in range(self.groups) for k in range(self.batches))
        return [(g, k) for g, k in every if (g if self.whole else g * self.batches + k) % self.teams == process // self.team]


@dataclass(frozen=True)
class BatchPlan:
    """The division of an epoch's samples. A micro-batch is `per_device_batch_size` samples of one row."""

    rows_per_epoch: int
    rolled: Deal
    """The distribution of the sampled micro-batches."""
    trained: Deal
    """The distribution of the trained micro-batches. They are fewer if only the best and the worst of a group count."""
    group_size: int
    per_device_batch_size: int
    samples_per_epoch: int
    drawn_together: int
    """Micro-batches of one row that a rollout draws in one call of the pipeline; `train.rollout_batch_size: auto` may find more."""
    micro_batches_per_rank: int
    trained_batches_per_rank: int
    """Micro-batches that are trained on: fewer than are rolled out if `train.best_of_n` keeps a part of each group."""
    trained_points: int
    """Training points of a micro-batch: its stochastic steps, or its noise levels."""
    micro_batches_per_update: int
    """On one process."""
    num_inner_epochs: int
    optimiser_steps_per_epoch: int
    """All inner epochs together."""

    @property
    def groups(self) -> int:
        """Groups of an epoch: one a row."""
        return self.rows_per_epoch

    def describe(self) -> list[tuple[str, str]]:
        """(what, how much), for printing."""
        many, team = self.rolled.teams, self.rolled.team
        who = f"{many} processes" if team == 1 else f"{many} context-parallel groups of {team} processes"
        how = f" = {self.rows_per_epoch // many} x {who}" if self.rolled.whole else f", shared among {who}"
        return [
            ("rows an epoch", f"{self.rows_per_epoch}{how}"),
            ("samples an epoch", f"{self.samples_per_epoch} = {self.groups} groups of {self.group_size}"),
            ("micro-batches a process", f"{self.micro_batches_per_rank} of {self.per_device_batch_size} samples"),
            ("training points", f"{self.trained_points} a micro-batch, {self.trained_batches_per_rank * self.trained_points} a process"),
            ("optimiser steps an epoch", f"{self.optimiser_steps_per_epoch} of {self.micro_batches_per_update} micro-batches a process"),
        ]


def micro_batches_per_update(config: RunConfig) -> int:
    """On one process."""
    train = config.train
    if train.gradient_accumulation_steps != "auto":
        return train.gradient_accumulation_steps
    return train.unique_sample_num_per_epoch * train.trained_batches_per_group // config.teams // train.gradient_step_per_epoch


def plan_of(config: RunConfig) -> BatchPlan:
    """The plan of a configuration whose batches divide (`load_config` returns no other)."""
    train = config.train
    rows, teams = train.unique_sample_num_per_epoch, config.teams
    rolled, trained = train.group_size // train.per_device_batch_size, train.trained_batches_per_group
    batches = rows * trained // teams
    update = micro_batches_per_update(config)
    drawn = train.rollout_batch_size
    whole = rows % teams == 0 and update % trained == 0
    shared_by = (config.num_processes, whole, config.model.context_parallel)
    return BatchPlan(
        rows_per_epoch=rows,
        rolled=Deal(rows, rolled, *shared_by),
        trained=Deal(rows, trained, *shared_by),
        group_size=train.group_size,
        per_device_batch_size=train.per_device_batch_size,
        samples_per_epoch=rows * train.group_size,
        drawn_together=drawn // train.per_device_batch_size if isinstance(drawn, int) else 1,
        micro_batches_per_rank=rows * rolled // teams,
        trained_batches_per_rank=batches,
        trained_points=train.points_per_batch(config.scheduler),
        micro_batches_per_update=update,
        num_inner_epochs=train.num_inner_epochs,
        optimiser_steps_per_epoch=batches // update * train.num_inner_epochs,
    )
