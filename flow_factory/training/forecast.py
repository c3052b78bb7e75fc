"""The prediction of a run's time from a short run with the same sizes."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch

from flow_factory.config import BatchPlan, RunConfig, plan_of
from flow_factory.config.data import DatasetConfig
from flow_factory.config.datasets import datasets_of, trained_on
from flow_factory.config.translate import deals
from flow_factory.data.encoding_windows import order_of
from flow_factory.training.meter import Meter

Seconds = Mapping[str, Mapping[str, Sequence[float]]]
"""Phase -> name of its steps -> seconds of each step; "" has the time after the last step."""
LEAST = 2
"""The number of groups, pipeline calls, micro-batches and test batches in the short run. The first includes tuning, the second not."""


def shrunk(config: RunConfig) -> RunConfig:
    """A config with an epoch of a few groups, with the same distribution over processes, samples, steps and image sizes as the run."""
    train, real = config.train, plan_of(config)
    few = next((c for rows in range(LEAST, train.unique_sample_num_per_epoch) if (c := _with_rows(config, rows, real)) is not None), config)
    update = {
        "train": few.train.model_copy(update={"max_epochs": 1}),
        "eval": config.eval.model_copy(update=_evaluated(config)),
    }
    if config.data.datasets is not None:
        update["data"] = config.data.model_copy(update={"datasets": tuple(_shrunk(d.config, entry) for d, entry in zip(
            datasets_of(config), config.data.datasets, strict=True))})  # fmt: skip
    return few.model_copy(update=update)


def _evaluated(config: RunConfig) -> dict[str, Any]:
    section = config.eval
    tested = -(-LEAST * section.per_device_batch_size // section.group_size) * config.teams
    return {"max_rows": min(tested, section.max_rows or tested), "full_at_end": False}


def _shrunk(alone: RunConfig, entry: DatasetConfig) -> DatasetConfig:
    if entry.eval is None:
        return entry
    overrides = entry.eval.overrides | _evaluated(alone)
    return entry.model_copy(update={"eval": entry.eval.model_copy(update={"overrides": overrides})})


def _with_rows(config: RunConfig, rows: int, real: BatchPlan) -> RunConfig | None:
    """The config with this many groups; None if a process had too little to do, or other parts of groups than in the run."""
    batches = rows * config.train.trained_batches_per_group // config.teams
    if not deals(config, rows) or batches < LEAST or rows * config.train.group_size // config.teams < LEAST * real.drawn_together:
        return None
    steps = next(n for n in (min(LEAST, real.optimiser_steps_per_epoch // real.num_inner_epochs), 1) if batches % n == 0)
    update = {"unique_sample_num_per_epoch": rows, "gradient_accumulation_steps": "auto", "gradient_step_per_epoch": steps}
    for few in (update, update | {"gradient_step_per_epoch": 1}):
        found = config.model_copy(update={"train": config.train.model_copy(update=few)})
        all_drawn = all(stream.begins(1) for stream in order_of(found, [1] * len(trained_on(config))).streams)
        if plan_of(found).rolled.whole == real.rolled.whole and all_drawn:
            return found
    return None


class StepTimes:
    """Observes a meter: the duration of each step of each phase, without nested phases."""

    def __init__(self, meter: Meter):
        self.meter = meter
        self.open: list[str] = []
        self.since: Any = None
        self.intervals: dict[str, list[tuple[Any, Any, str]]] = defaultdict(list)
        """Phase -> (start, end, name of the step that ended, or "")."""

    def begins(self, phase: str) -> None:
        self._cut("")
        self.open.append(phase)

    def steps(self, phase: str, what: str) -> None:
        self._cut(what)

    def ends(self, phase: str) -> None:
        self._cut("")
        self.open.pop()

    def _cut(self, done: str) -> None:
        now = self.meter.tick()
        if self.open:
            self.intervals[self.open[-1]].append((self.since, now, done))
        self.since = now

    def seconds(self) -> "Seconds":
        """The durations, once the phases have ended."""
        if self.meter.cuda:
            torch.cuda.synchronize()  # the last events may be pending
        found: dict[str, dict[str, list[float]]] = {}
        for phase, intervals in self.intervals.items():
            steps, since = found.setdefault(phase, defaultdict(list)), 0.0
            for begin, end, done in intervals:
                since += self.meter.seconds(begin, end)
                if done:
                    steps[done].append(since)
                    since = 0.0
            steps[""].append(since)
        return found


@dataclass
class Forecast:
    """The prediction, in seconds on one process.

    Attributes:
        phases: phase of an epoch -> seconds.
        once: additional seconds of the first steps: compilation, tuning, first reads.
        evaluation: seconds of one evaluation with the run's number of rows.
    """

    phases: dict[str, float] = field(default_factory=dict)
    once: float = 0.0
    evaluation: float = 0.0

    def add(self, steps: Sequence[float], many: float, rest: float = 0.0) -> float:
        """Seconds of `many` steps, from the measured steps and the rest of the phase."""
        if not steps:
            return rest
        usual = fmean(steps[1:] or steps)
        self.once += max(0.0, steps[0] - usual)
        return many * (usual + rest / len(steps))


def forecast(config: RunConfig, few: RunConfig, seconds: Seconds, rows: tuple[int, int], live: Sequence[bool] = ()) -> Forecast:
    """Predicts an epoch and an evaluation of a run.

    Args:
        config: the config of the run.
        few: the `shrunk` config of which `seconds` were measured.
        rows: (test rows of the run, test rows of the short run), or their costs.
        live: for each kept copy that the loss uses, whether it equals the policy until the first update.
    """
    real, small, found = plan_of(config), plan_of(few), Forecast()
    more = real.micro_batches_per_rank / small.micro_batches_per_rank
    for phase in ("rollout", "reward", "advantage"):
        steps = seconds.get(phase, {})
        calls, rest = steps.get("call", ()), sum(steps.get("", ()))
        found.phases[phase] = found.add(calls, more * len(calls), rest) if calls else rest * more
    found.phases["optimise"] = _learning(real, seconds.get("optimise", {}), live, found)
    drawn = seconds.get("eval", {})
    each = drawn.get("batch", ())
    found.evaluation = found.add(each, len(each) * rows[0] / max(1, rows[1]), sum(drawn.get("", ())))
    return found


def _learning(plan: BatchPlan, steps: Mapping[str, Sequence[float]], live: Sequence[bool], found: Forecast) -> float:
    """Seconds of the optimise phase. A forward counts as a third of a micro-batch if no forward of kept weights was measured."""
    batches, updates = plan.trained_batches_per_rank, plan.optimiser_steps_per_epoch
    each = found.add(steps.get("micro-batch", ()), 1)
    back = sum(batches - plan.micro_batches_per_update if first else batches for first in live)
    looked = steps.get("looking back", ())
    seconds = back * (found.add(looked, 1) if looked else each / 3)
    return seconds + batches * plan.num_inner_epochs * each + found.add(steps.get("update", ()), updates) + sum(steps.get("", ()))


def times(config: RunConfig) -> tuple[int, int] | None:
    """(evaluations, checkpoints) of a run; None for a run without an end."""
    last = config.train.max_epochs
    if last is None:
        return None
    freq, save = config.eval.eval_freq, config.log.save_freq
    evaluations = len({*range(0, last + 1, freq), last}) if freq else 0
    return evaluations, len({*range(save, last + 1, save), last}) if save else 1
