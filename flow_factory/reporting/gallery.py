"""The images and curves in a run's folder."""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from flow_factory.reporting.curves import plot_curves
from flow_factory.reporting.page import store
from flow_factory.reporting.page.write import FILE, write_page
from flow_factory.reporting.report import save_before_after, save_grid
from flow_factory.reporting.samples import keep_samples, kept_samples, of_same_rows, save_videos
from flow_factory.types import Sample
from flow_factory.utils.background import Background
from flow_factory.utils.terminal import REMARKS, Remark

logger = logging.getLogger(__name__)
Shown = TypeVar("Shown")
REDRAWN = 30.0
"""The least number of seconds between two drawings of the curves and the page of a run in progress."""


class Gallery(Background):
    """Grids, videos and curves, drawn beside the training: all processes would wait for the main one while it draws."""

    def __init__(self, folder: Path):
        super().__init__("gallery")
        self.folder, self.drawn, self.paged = folder, time.monotonic(), time.monotonic()
        self.warned: set[str] = set()

    def show(self, samples: Sequence[Sample], step: int) -> None:
        """Starts to draw an evaluation. The first one is kept for the comparison."""

        def work() -> None:
            self.drawing("samples", lambda: self._show(samples, step))
            self.drawing(store.FOLDER, lambda: store.keep_evaluation(self.folder, samples, step))
            self.page()

        self.start(work)

    def keep_groups(self, samples: Sequence[Sample], step: int) -> None:
        """Starts to store an epoch's groups for the page, and rewrites the page if it is too old."""

        def work() -> None:
            self.drawing(store.FOLDER, lambda: store.keep_groups(self.folder, samples, step))
            if time.monotonic() - self.paged > REDRAWN:
                self.page()

        self.start(work)

    def page(self) -> None:
        """Writes the page of the run so far."""

        def write() -> None:
            store.keep_remarks(self.folder, [REMARKS.popleft() for _ in range(len(REMARKS))])
            write_page(self.folder)

        self.drawing(FILE, write)
        self.paged = time.monotonic()

    def _show(self, samples: Sequence[Sample], step: int) -> None:
        folder = self.folder / "samples"
        save_grid(samples, folder / f"eval_{step:05d}.png")
        before = kept_samples(folder / "before")
        if not before:  # the run's first evaluation
            save_videos(samples, self.folder / "videos", "1_before")
            keep_samples(samples, folder / "before")
            return
        after = of_same_rows(before, samples)
        pairs = [(b, a) for b, a in zip(before, after, strict=True) if a is not None]
        if pairs:
            save_before_after([b for b, _ in pairs], [a for _, a in pairs], self.folder / "before_after.png")
        else:  # of an earlier evaluation, which had rows of the first one
            (self.folder / "before_after.png").unlink(missing_ok=True)
        others = [s for s in samples if not any(s is a for a in after)]
        save_videos([*after, *others], self.folder / "videos", "2_after")
        if time.monotonic() - self.drawn > REDRAWN:
            self.curves()

    def close(self, error: Exception | None = None) -> None:
        """Writes the last page of a run, with the error that has ended it, if any."""
        self.wait_quietly()
        if error is not None:
            REMARKS.append(Remark(time.time(), "error", f"{type(error).__name__}: {str(error)[:2000]}"))
        self.page()

    def curves(self) -> None:
        """Draws what was logged so far."""
        self.drawing("curves.png", lambda: plot_curves(self.folder / "metrics.jsonl", self.folder / "curves.png"))
        self.drawn = time.monotonic()

    def drawing(self, what: str, draw: Callable[[], Shown]) -> Shown | None:
        """Draws or writes a file for people. A failure is reported once and does not end the training."""
        try:
            return draw()
        except Exception as error:  # of fonts, codecs, libraries that draw and the file system: none is worth the run
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            if reason not in self.warned:
                self.warned.add(reason)
                logger.warning("%s of %s cannot be written, and the run continues: %s", what, self.folder, reason)
            return None
