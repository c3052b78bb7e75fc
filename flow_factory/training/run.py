"""A run: the trainer with evaluations, logs, images, checkpoints and the final summary."""

import logging
import re
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from flow_factory.distributed import liveness
from flow_factory.distributed.barriers import wait_for_everyone
from flow_factory.distributed.collectives import max_over_ranks
from flow_factory.memory.fit import measured
from flow_factory.policy.gradient_checkpointing import RecomputeFallback
from flow_factory.reporting.gallery import Gallery
from flow_factory.reporting.page.about import about
from flow_factory.reporting.page.store import begin as begin_page
from flow_factory.reporting.page.write import FILE as REPORT
from flow_factory.reporting.trackers import Trackers
from flow_factory.runs.run_folder import RunFolder
from flow_factory.training import kept_rollouts
from flow_factory.training.banner import aligned, banner
from flow_factory.training.context import TrainingContext
from flow_factory.training.evaluation import Evaluator
from flow_factory.training.interventions import Interventions
from flow_factory.training.next_steps import resume_command
from flow_factory.training.publishing import publish
from flow_factory.training.replay_error import measure
from flow_factory.training.run_evaluation import evaluate
from flow_factory.training.saver import Saver
from flow_factory.training.summary import summarise
from flow_factory.training.trainer import Trainer
from flow_factory.utils.errors import RowError, UserError
from flow_factory.utils.signals import Interrupted
from flow_factory.utils.terminal import Epochs, note, print_line

logger = logging.getLogger(__name__)


@dataclass
class Run:
    """A training that is ready to start; built by `train.build`."""

    folder: Path
    context: TrainingContext
    trainer: Trainer
    evaluators: tuple[Evaluator, ...]
    """One for each evaluated data set."""
    trackers: Trackers | None
    """The trackers, on the main process only."""
    saver: Saver
    claim: RunFolder | None = None
    """The lock of the folder, on the main process only."""
    recompute_fallback: RecomputeFallback | None = None
    """Set if an estimate has chosen the blocks to recompute."""
    resumes: bool = False
    """Whether the run resumes a training state."""
    evaluated: bool = False
    """Whether the resumed run has already evaluated after its last epoch."""
    last_state: Path | None = None
    """The last checkpoint with a training state."""
    memory_reported: bool = field(default=False, init=False)
    """Whether the first epoch's memory was printed with the estimate."""
    save_cost: dict[str, float] = field(default_factory=dict, init=False)
    """The time that the last checkpoint took. It is logged with the next epoch."""
    last_checkpoint: Path | None = field(default=None, init=False)
    """The last checkpoint that was started."""
    interventions: Interventions = field(init=False)
    gallery: Gallery = field(init=False)
    bar: Epochs = field(init=False)
    started: float = field(init=False)
    began: int = field(init=False)
    """The epochs done when this start of the run began."""
    save_started: float = field(init=False)
    """When the last checkpoint was started, in seconds of the monotonic clock."""

    def __post_init__(self) -> None:
        self.gallery = Gallery(self.folder)
        self.interventions = Interventions(self.context, self.saver, self.folder, self.ensure_saved, self.last_state)

    def __call__(self) -> str:
        """Trains to the end and returns the summary. Releases the lock of the folder.

        Raises:
            Interrupted: SIGTERM or Ctrl-C, after the training state was saved.
        """
        try:
            self.train()
            return self.finish()
        except Exception as error:
            if self.main:
                self.gallery.close(None if isinstance(error, Interrupted) else error)
            raise
        finally:
            if self.claim is not None:
                self.claim.release()

    def train(self) -> None:
        """All epochs, with evaluations and checkpoints between them."""
        progress = self.context.progress
        self.began = progress.epoch
        self.started = self.save_started = time.monotonic()
        if self.main:
            self.announce()
        if self.evaluated:
            self.interventions.catch_up()
        self.restore_rollouts()
        floor = measure(self.trainer)
        if floor is not None and self.main:
            print_line(floor)
        with self.context.interrupt.watching(), Epochs(self.context.config.train.max_epochs, self.began, self.main) as self.bar:
            try:
                self.epochs()
            except UserError as error:
                if error.everywhere or (isinstance(error, RowError) and self.context.accelerator.num_processes == 1):
                    self.save_after_failure()
                raise
            except Interrupted as signal:
                self.stop()
                command = resume_command(self.context.config, self.folder)
                logger.warning("%s: stopped before epoch %d; resume with: %s", signal, progress.epoch + 1, command)
                raise

    def announce(self) -> None:
        """Prints the banner and begins the page of the run."""
        lines = banner(self)
        print_line(aligned(lines))
        self.gallery.drawing(REPORT, lambda: begin_page(self.folder, about(self.context.config, lines), self.context.progress.epoch))

    def epochs(self) -> None:
        """Trains epoch after epoch. Evaluates and saves where the config asks for it, and at the end."""
        config, progress = self.context.config, self.context.progress
        last, with_state = config.train.max_epochs, not config.log.save_model_only
        if not self.evaluated and (progress.epoch == last or _due(progress.epoch, config.eval.eval_freq)):
            self.evaluate()
        while (last is None or progress.epoch < last) and not self.interventions.stopped:
            metrics = self.trainer.epoch()
            self.report(metrics | self.save_cost | self.interventions(metrics, "train"))
            self.save_cost = {}
            if self.main and self.trainer.shown:
                self.gallery.keep_groups(self.trainer.shown, progress.epoch)
            self.saver.check()
            self.gallery.check()
            done = progress.epoch == last or self.interventions.stopped
            if done or _due(progress.epoch, config.log.save_freq) or self.save_minutes_passed():
                self.save(state=with_state)
            if done or _due(progress.epoch, config.eval.eval_freq):
                self.evaluate()
            if self.interventions.stopped:
                self.ensure_saved(state=with_state)

    def stop(self) -> None:
        """Saves the training state after the last whole epoch, unless it is saved already, and the finished part of the current epoch."""
        had_state = self.is_current(self.last_state)
        self.ensure_saved(state=True)
        self.saver.wait()
        untouched = had_state and self.trainer.collector.done is not None
        line = kept_rollouts.keep(self.trainer, self.checkpoint()) if not untouched else None
        if line is not None and self.main:
            note(line)
        self.gallery.wait()

    def restore_rollouts(self) -> None:
        """Loads the finished part of an interrupted epoch, if the resumed run has saved one."""
        line = None if self.last_state is None else kept_rollouts.restore(self.trainer, self.last_state)
        if line is not None and self.main:
            note(line)

    def save_minutes_passed(self) -> bool:
        """Whether `log.save_minutes` have passed since the last checkpoint, by the main process's clock."""
        minutes = self.context.config.log.save_minutes
        if minutes is None:
            return False
        wait_for_everyone("logging")
        return max_over_ranks(self.context.accelerator, self.main and time.monotonic() - self.save_started >= 60 * minutes) > 0

    def save_after_failure(self) -> None:
        """Saves the training state after a failed reward or row, if there are epochs since the start and no weight has changed since."""
        if self.trainer.midway:
            logger.warning("some groups of this epoch were trained on already, so no further training state is saved")
        elif self.context.progress.epoch > self.began:
            self.save(state=True)
            self.saver.wait()
            command = resume_command(self.context.config, self.folder)
            logger.warning("the state after epoch %d is saved; resume with: %s", self.context.progress.epoch, command)

    def report(self, metrics: dict[str, float]) -> None:
        """Logs and prints the metrics of an epoch."""
        liveness.set_activity("logging")
        self.bar.show_epoch(metrics)
        self.log(metrics)
        peaks = {found[1]: gb for name, gb in metrics.items() if (found := re.fullmatch(r"perf/(\w+)_peak_memory_gb", name))}
        if peaks and self.main and not self.memory_reported:
            print_line(measured(self.context.config, peaks))
            self.memory_reported = True
        if self.recompute_fallback is not None:
            wait_for_everyone("logging")
            share = self.context.meter.memory.share_of_card()
            self.recompute_fallback.look(share, lambda nearly_full: max_over_ranks(self.context.accelerator, nearly_full) > 0)

    def log(self, metrics: dict[str, float]) -> None:
        """Logs metrics under the current epoch."""
        if self.trackers is not None:
            self.trackers.log(metrics, self.context.progress.epoch)

    def evaluate(self) -> None:
        """Evaluates on the test rows, and logs their images and the last training samples."""
        evaluate(self)

    def save(self, state: bool) -> None:
        """Starts a checkpoint: the evaluated weights, and the training state if `state`."""
        with self.context.meter.phase("save"):
            self.saver.save(self.checkpoint(), self.trainer.state() if state else None)
        self.save_cost, self.save_started = self.context.meter.cost("save"), time.monotonic()
        self.last_checkpoint = self.checkpoint()
        if state:
            self.last_state = self.last_checkpoint

    def ensure_saved(self, state: bool) -> None:
        """As `save`, unless the weights of this epoch, and with `state` its training state, are saved already."""
        if not self.is_current(self.last_state if state else self.last_checkpoint):
            self.save(state)

    def is_current(self, saved: Path | None) -> bool:
        """Whether `saved` is this run's checkpoint of the current epoch."""
        return saved is not None and saved.resolve() == self.checkpoint().resolve()

    def finish(self) -> str:
        """Waits for the checkpoint and closes the logs. Returns the summary on the main process."""
        self.saver.wait()
        if self.trackers is None:
            return ""
        self.trackers.finish()
        self.gallery.wait()
        self.gallery.curves()
        self.gallery.close()
        text = self.gallery.drawing("summary.md", partial(summarise, self)) or ""
        publish(self)
        return text

    @property
    def main(self) -> bool:
        return self.context.accelerator.is_main_process

    def checkpoint(self) -> Path:
        return self.folder / "checkpoints" / f"epoch_{self.context.progress.epoch}"


def _due(epoch: int, every: int) -> bool:
    return every > 0 and epoch % every == 0
