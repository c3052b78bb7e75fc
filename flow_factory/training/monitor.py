"""Decides when a watched metric is out of bounds, and what follows. It knows numbers alone, and acts on nothing.

What it remembers is in `Progress.memory`, so it is saved with the training state: a run that goes on decides what one would that never
stopped.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from flow_factory.config import RunConfig
from flow_factory.config.monitor import Do, WatchConfig
from flow_factory.training.symptoms import held_out, words

Memory = dict[str, list[float]]
OWN = "monitor/"
"""What its keys in the memory begin with."""
RATE, SEEN, TRAINED = f"{OWN}rate", f"{OWN}seen", f"{OWN}trained"
"""[factor of the learning rate]; [epochs whose train/ and eval/ were looked at]; [first and last train/reward_mean]."""
PHASES = ("train", "eval")


class Alarm(NamedTuple):
    """A watch that acts."""

    do: Do
    lr_factor: float
    line: str
    """What it saw, and what that means; without what is done."""
    advice: str
    key: str
    """The key of the watch, see `Watch.key`."""


@dataclass
class State:
    """The state of one watch."""

    streak: int = 0
    """Times in a row that it was out of bounds."""
    warned: bool = False
    """Since it was last within them."""
    acted: int = 0
    """How often it has changed the run."""
    stopped: bool = False
    extreme: tuple[float, int] | None = None
    """The highest or lowest value so far, and after which epoch."""

    @classmethod
    def of(cls, numbers: list[float]) -> "State":
        streak, warned, acted, stopped, *extreme = numbers or [0, 0, 0, 0]
        return cls(int(streak), bool(warned), int(acted), bool(stopped), (extreme[0], int(extreme[1])) if extreme else None)

    def numbers(self) -> list[float]:
        return [*map(float, (self.streak, self.warned, self.acted, self.stopped)), *map(float, self.extreme or ())]


@dataclass
class Monitor:
    """The watches of a run, on the main process, which decides for all."""

    config: RunConfig
    unseen: set[str] = field(default_factory=set)
    """Watched metrics that were not logged when they were due, and of which that was said."""

    @property
    def active(self) -> bool:
        """Whether there is anything to look at."""
        return bool(self.config.monitor) or self.config.log.keep_best is not None

    def best(self, memory: Memory) -> tuple[float, int] | None:
        """The best value of `log.keep_best` so far, and after how many epochs it was."""
        found = memory.get(f"{OWN}best {self.config.log.keep_best}")
        return None if found is None else (found[0], int(found[1]))

    @property
    def goes_back(self) -> bool:
        """Whether a watch may go back to the best checkpoint."""
        return any(watch.do == "back" for watch in self.config.monitor)

    def look(self, memory: Memory, metrics: Mapping[str, float], phase: str, epoch: int) -> list[Alarm]:
        """Takes an epoch's or an evaluation's metrics into the memory.

        Args:
            memory: of the run; is changed.
            phase: train or eval.
            epoch: epochs done.
        """
        if "train/reward_mean" in metrics:
            memory[TRAINED] = [memory.get(TRAINED, [metrics["train/reward_mean"]])[0], metrics["train/reward_mean"]]
        seen = dict(zip(PHASES, memory.get(SEEN, [-1.0, -1.0]), strict=True)) | {phase: float(epoch)}
        memory[SEEN] = [seen[name] for name in PHASES]
        if phase == "eval":
            self._best(memory, metrics, epoch)
        alarms = []
        for watch in self.config.monitor:
            value = metrics.get(watch.metric, math.nan)
            if watch.phase == phase and epoch >= watch.from_epoch and not math.isnan(value):
                state = State.of(memory.get(OWN + watch.key, []))
                alarms += self._one(watch, state, value, epoch, memory)
                memory[OWN + watch.key] = state.numbers()
        return alarms

    def _one(self, watch: WatchConfig, state: State, value: float, epoch: int, memory: Memory) -> list[Alarm]:
        limit = beyond(watch, state, value)
        state.streak = state.streak + 1 if limit else 0
        state.warned = state.warned and bool(limit)
        if limit is None or state.streak < watch.patience or (watch.do == "warn" and state.warned):
            remember(watch, state, value, epoch)
            return []
        again = f", {state.streak} times in a row" if state.streak > 1 else ""
        means, advice = words(self.config, watch)
        line = f"after epoch {epoch} {watch.metric} is {value:.4g}, {limit}{again}{trained_note(self.config, watch, memory)}: {means}"
        remember(watch, state, value, epoch)
        if watch.do == "warn":
            state.warned = True
            return [Alarm("warn", 1.0, line, advice, watch.key)]
        state.streak, state.acted = 0, state.acted + 1
        do: Do = watch.do if state.acted <= watch.times else "stop"
        state.stopped = do == "stop" and epoch != self.config.train.max_epochs
        return [Alarm(do, watch.lr_factor, line, advice, watch.key)]

    def stopped(self, memory: Memory) -> bool:
        """Whether a watch of this config has ended the run."""
        return any(self.ended_by(memory, watch.key) for watch in self.config.monitor)

    @staticmethod
    def ended_by(memory: Memory, key: str) -> bool:
        """Whether the watch of this key has ended the run."""
        return State.of(memory.get(OWN + key, [])).stopped

    def stop(self, memory: Memory, key: str) -> None:
        """Ends the run by a watch."""
        state = State.of(memory[OWN + key])
        state.stopped = True
        memory[OWN + key] = state.numbers()

    def missing(self, metrics: Mapping[str, float], phase: str) -> list[str]:
        """Watched metrics that are not there though they are due; each is named once."""
        due = [watch.metric for watch in self.config.monitor if watch.phase == phase]
        due += [self.config.log.keep_best] if self.config.log.keep_best and phase == "eval" else []
        found = [metric for metric in dict.fromkeys(due) if metric not in metrics and metric not in self.unseen]
        self.unseen |= set(found)
        return found

    def _best(self, memory: Memory, metrics: Mapping[str, float], epoch: int) -> None:
        """Remembers an evaluation that is the best so far by `log.keep_best`."""
        metric = self.config.log.keep_best
        value = math.nan if metric is None else metrics.get(metric, math.nan)
        if metric is None or math.isnan(value):
            return
        sign, before = -1 if metric.endswith("/loss") else 1, self.best(memory)
        if before is None or sign * value > sign * before[0]:
            memory[f"{OWN}best {metric}"] = [value, float(epoch)]


def beyond(watch: WatchConfig, state: State, value: float) -> str | None:
    """How a value is out of bounds; None where it is within them."""
    if watch.above is not None:
        return f"above {watch.above:g}" if value > watch.above else None
    if watch.below is not None:
        return f"below {watch.below:g}" if value < watch.below else None
    if state.extreme is None:
        return None
    ends = {"rises": ("above", "lowest"), "falls": ("below", "highest")}
    extreme, epoch = state.extreme
    way, which = ends[watch.condition]
    off = value - extreme if watch.condition == "rises" else extreme - value
    amount = getattr(watch, watch.condition)
    most = abs(extreme) * float(amount[:-1]) / 100 if isinstance(amount, str) else amount
    return f"{off:.3g} {way} its {which}, {extreme:.4g} after epoch {epoch}" if off > most else None


def remember(watch: WatchConfig, state: State, value: float, epoch: int) -> None:
    """The extreme value that later ones are compared with."""
    if watch.condition not in ("rises", "falls"):
        return
    sign = 1 if watch.condition == "falls" else -1
    if state.extreme is None or sign * value > sign * state.extreme[0]:
        state.extreme = (value, epoch)


def trained_note(config: RunConfig, watch: WatchConfig, memory: Memory) -> str:
    """What the trained rewards did, where a held-out one is out of bounds."""
    first, last = memory.get(TRAINED, [0.0, 0.0])
    if not held_out(config, watch) or last <= first:
        return ""
    return f", while train/reward_mean rose from {first:.4g} to {last:.4g}"
