"""How long a test waits for other processes: as long as something happens in their folder, so that a limit only stops what hangs."""

import os
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

PATIENCE = 300.0
"""Seconds without a sign of life. The longest silence is a start's, which an idle machine of two cores does in less than 20."""


class Watch:
    """Asks a folder for signs of life: files that come, go or are written."""

    def __init__(self, folder: Path):
        self.folder, self.last, self.since = folder, signs(folder), time.monotonic()

    def check(self, who: object) -> None:
        """Called again and again.

        Raises:
            TimeoutError: nothing has happened for `PATIENCE`.
        """
        if (now := signs(self.folder)) != self.last:
            self.last, self.since = now, time.monotonic()
        if time.monotonic() - self.since > PATIENCE:
            raise TimeoutError(f"{who} hangs: nothing has happened in {self.folder} for {PATIENCE:.0f} s")


def signs(folder: Path) -> set[tuple[str, int]]:
    found = set()
    for inside, folders, files in os.walk(folder):  # which passes over a folder that is removed meanwhile
        for path in (Path(inside, name) for name in (*folders, *files)):
            with suppress(FileNotFoundError):  # it was renamed or removed since
                found.add((str(path), path.stat().st_mtime_ns))
    return found


def output(run: "subprocess.Popen[str]", folder: Path) -> tuple[str, str]:
    """What the process writes until it ends; it is killed if it hangs, by whoever started it."""
    watch = Watch(folder)
    while True:
        try:
            return run.communicate(timeout=0.5)
        except subprocess.TimeoutExpired:
            watch.check(run.args)


def until(happened: Callable[[], bool], run: "subprocess.Popen[str]", folder: Path) -> None:
    """Waits for it while the process runs."""
    watch = Watch(folder)
    while not happened() and run.poll() is None:
        watch.check(run.args)
        time.sleep(0.05)


def none_left(folder: Path) -> None:
    """Waits for the end of all processes whose working directory it is, but for the test's own."""
    watch = Watch(folder)
    while left := [p for p in psutil.process_iter(["cwd"]) if p.info["cwd"] == str(folder) and p.pid != os.getpid()]:
        watch.check(left)
        time.sleep(0.1)
