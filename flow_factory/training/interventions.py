"""The actions of `monitor:`: a warning, a lower learning rate, the end of the run, a return to the best checkpoint.

All processes do the same.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from accelerate.utils import broadcast_object_list

from flow_factory.checkpoints.checkpoint import has_state, plainly, run_of
from flow_factory.distributed.barriers import wait_for_everyone
from flow_factory.reporting.alarms import ENDS, add_alarm, described
from flow_factory.reporting.metrics import evaluations_in, records_of
from flow_factory.runs.resume import Choice, see
from flow_factory.runs.training_state import restore
from flow_factory.training.context import TrainingContext
from flow_factory.training.monitor import OWN, RATE, SEEN, Alarm, Memory, Monitor
from flow_factory.training.saver import Saver
from flow_factory.training.schedule import scale_rate

logger = logging.getLogger(__name__)


@dataclass
class Interventions:
    """The interventions of a run on one process. The main process decides, with `Monitor`.

    Args:
        save: saves the epochs done so far, with their training state where it is asked for one, unless that is there.
        origin: the checkpoint that the run goes on from, which may be another run's.
    """

    context: TrainingContext
    saver: Saver
    folder: Path
    save: Callable[[bool], None]
    origin: Path | None = None
    monitor: Monitor = field(init=False)

    def __post_init__(self) -> None:
        self.monitor = Monitor(self.context.config)
        self.saver.best = self.best
        if self.factor != 1:
            scale_rate(self.context.schedule, self.factor)

    @property
    def memory(self) -> Memory:
        return self.context.progress.memory

    @property
    def factor(self) -> float:
        """The factor of the learning rates, from the interventions so far."""
        return self.memory.get(RATE, [1.0])[0]

    @property
    def stopped(self) -> bool:
        """Whether a watch has ended the run."""
        return self.monitor.stopped(self.memory)

    @property
    def best(self) -> Path | None:
        """The best checkpoint by `log.keep_best`. A run that was resumed from another run's state may have it in that run's folder."""
        if (found := self.monitor.best(self.memory)) is None:
            return None
        name = f"epoch_{found[1]}"
        mine = self.folder / "checkpoints" / name
        return self.origin.parent / name if self.origin is not None and not mine.exists() else mine

    def catch_up(self) -> None:
        """Repeats what followed from an evaluation that was done after the state was saved."""
        metrics = evaluated_at(self.origin, self.context) if self.origin is not None and self.monitor.active else {}
        if metrics and self.memory.get(SEEN, [-1.0, -1.0])[1] < self.context.progress.epoch:
            self(metrics, "eval")

    def __call__(self, metrics: Mapping[str, float], phase: str) -> dict[str, float]:
        """Looks at an epoch's or an evaluation's metrics, and acts. All processes come here.

        A state that is saved here does not remember the evaluation yet: a run that goes on from it looks at that again.

        Args:
            phase: train or eval.

        Returns:
            What to log beside them.
        """
        if not self.monitor.active:
            return {}
        found: tuple[Memory, list[Alarm]] = {}, []
        if self.context.accelerator.is_main_process:
            for metric in self.monitor.missing(metrics, phase):
                logger.warning(
                    "monitor: %s is not logged in this run, so it is not watched; ff-train --help-metrics says when it is", metric
                )
            own = {key: list(value) for key, value in self.memory.items() if key.startswith(OWN)}
            found = own, self.monitor.look(own, metrics, phase, self.context.progress.epoch)
        wait_for_everyone("monitoring")
        own, alarms = broadcast_object_list([found])[0]
        if self.monitor.best(own) != self.monitor.best(self.memory):
            self.save(self.monitor.goes_back or not self.context.config.log.save_model_only)
        self.memory.update(own)
        self.saver.best = self.best
        return self.act(alarms) if alarms else {}

    def act(self, alarms: list[Alarm]) -> dict[str, float]:
        """Carries out each alarm's action, and reports it."""
        epoch, logged = self.context.progress.epoch, {"monitor/alarms": float(len(alarms))}
        for alarm in alarms:
            if epoch == self.context.config.train.max_epochs and alarm.do != "warn":
                did = "it was the last epoch, so nothing is done"
            elif alarm.do == "back":
                did = self.back(alarm)
                logged["monitor/back_to"] = float((self.monitor.best(self.memory) or (0, -1))[1])
            elif alarm.do == "lower_lr":
                did = self.lower(alarm.lr_factor)
            else:
                did = "the run ends here" if alarm.do == "stop" else ""
            if self.context.accelerator.is_main_process:
                logger.warning("monitor: %s; to do: %s", described(alarm.line, did), alarm.advice)
                record = {"do": alarm.do, "saw": alarm.line, "did": did, "to_do": alarm.advice}
                add_alarm(self.folder, epoch, record | ({ENDS: alarm.key} if self.monitor.ended_by(self.memory, alarm.key) else {}))
        return logged | {"monitor/lr_factor": self.factor}

    def lower(self, factor: float) -> str:
        """Lowers all learning rates for the rest of the run; says so."""
        self.memory[RATE] = [self.factor * factor]
        scale_rate(self.context.schedule, self.factor)
        return f"the learning rate is now {self.factor:.3g} times that of train:"

    def back(self, alarm: Alarm) -> str:
        """Takes weights, their copies and moments of the best checkpoint, and what algorithms remember; epochs and updates count on."""
        best, main = self.best, self.context.accelerator.is_main_process
        self.saver.wait()
        there = main and best is not None and has_state(best)
        wait_for_everyone("going back")
        if not broadcast_object_list([there])[0] or best is None:
            self.monitor.stop(self.memory, alarm.key)
            return f"there is no best checkpoint with a training state to go back to{f' ({best})' if best else ''}, so the run ends here"
        see(Choice(best, True))
        saved = restore(best, self.context.store, self.context.engine)
        others = {key: list(value) for key, value in saved.memory.items() if not key.startswith(OWN)}
        own = {key: value for key, value in self.memory.items() if key.startswith(OWN)}
        self.memory.clear()
        self.memory.update(others | own)
        return f"the weights and the optimizer of epoch {saved.epoch} are restored; {self.lower(alarm.lr_factor)}"

    def facts(self) -> list[str]:
        """A line of the summary: the best checkpoint."""
        if (found := self.monitor.best(self.memory)) is None:
            return []
        return [f"best by log.keep_best ({self.context.config.log.keep_best}): {found[0]:.4g} after epoch {found[1]}, in {self.best}"]


def evaluated_at(checkpoint: Path, context: TrainingContext) -> dict[str, float]:
    """The metrics of the evaluation at the epoch of a checkpoint with a state, by its run's metrics.jsonl; nothing where there are none.

    Raises:
        CheckpointError: `metrics.jsonl` is damaged.
    """
    home, found = run_of(checkpoint), dict[str, float]()
    if context.accelerator.is_main_process:
        with plainly(home / "metrics.jsonl", "is damaged"):
            evaluations = evaluations_in(records_of(home))
        found = {f"eval/{name}": value for name, value in evaluations.get(context.progress.epoch, {}).items()}
    wait_for_everyone("reading metrics")
    return broadcast_object_list([found])[0]
