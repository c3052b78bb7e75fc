"""Traces of one epoch's first steps by torch's profiler, in the run's folder."""

import logging
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from flow_factory.config.profile import ProfileConfig
from flow_factory.runs.training_state import Progress
from flow_factory.utils.terminal import note

logger = logging.getLogger(__name__)
BEGINS = {"rollout": None, "reward": None, "optimise": "looked back"}
"""Traced phase -> the step after which its trace starts. Before it, forwards of kept weights may take the whole epoch."""
COUNTED = ("call", "micro-batch")


class Tracer:
    """Observes a meter and records one epoch of a run.

    Args:
        folder: the folder of the run.
        process: the rank of this process.
        speaks: whether this process prints where the traces are.
    """

    def __init__(self, config: ProfileConfig, folder: Path, process: int, progress: Progress, cuda: bool, speaks: bool):
        self.config, self.folder, self.process, self.progress, self.speaks = config, folder / "profile", process, progress, speaks
        self.activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
        self.traced: set[str] = set()
        self.phase, self.left = "", 0
        self.profiler: profile | None = None

    def begins(self, phase: str) -> None:
        if BEGINS.get(phase, "") is None:
            self._start(phase)

    def steps(self, phase: str, what: str) -> None:
        if what == BEGINS.get(phase, ""):
            self._start(phase)
        elif self.profiler is not None and phase == self.phase and what in COUNTED:
            self.left -= 1
            if not self.left:
                self._stop()

    def ends(self, phase: str) -> None:
        if phase == self.phase:
            self._stop()

    def _start(self, phase: str) -> None:
        if self.progress.epoch + 1 != self.config.epoch or phase in self.traced or self.profiler is not None:
            return
        self.traced.add(phase)
        self.phase, self.left = phase, self.config.steps
        self.profiler = profile(activities=self.activities, profile_memory=self.config.memory)
        self.profiler.start()

    def _stop(self) -> None:
        if self.profiler is None:
            return
        profiler, self.profiler = self.profiler, None
        profiler.stop()
        file = self.folder / f"epoch_{self.config.epoch}_{self.phase}_process_{self.process}.json.gz"
        try:
            self.folder.mkdir(exist_ok=True)
            profiler.export_chrome_trace(str(file))
        except (OSError, RuntimeError) as error:  # kineto's, where it cannot write
            logger.warning("%s could not be written (%s); the run continues without it", file, error)
            return
        if self.speaks and self.phase == "optimise":
            note(f"profile: traces of epoch {self.config.epoch} are in {self.folder}; open one in https://ui.perfetto.dev")
