"""Measures the first encoded rows: prints the time and the disk space of all, and checks the free space."""

import time
from pathlib import Path

from flow_factory.data.cache import ConditionCache
from flow_factory.data.cache_folder import free_space, require_space
from flow_factory.utils.terminal import format_duration, note, speed

FIRST = 8
"""Rows that are measured, behind the one for which encoders are loaded and brought to the device."""
LONG = 10.0
"""Seconds from which on it is worth a line."""


class Pace:
    """Of one share of rows that are encoded.

    Args:
        missing: rows that this process is to encode; each of the others about as many.
        processes: that share them out.
        told: whether this one says it.
        strict: whether the disk must have room; a run that is under way goes on without a cache.
        later: rows of all processes that the run draws after these.
    """

    def __init__(self, cache: ConditionCache, missing: int, processes: int, told: bool, strict: bool = True, later: int = 0):
        self.cache, self.missing, self.processes, self.told, self.strict, self.later = cache, missing, processes, told, strict, later
        self.rows, self.since, self.size = -1, 0.0, 0

    def row(self) -> None:
        """A row begins.

        Raises:
            UserError: the disk has no room for the rest.
        """
        self.rows += 1
        if self.rows in (1, 1 + FIRST):
            self.cache.writer.settle()  # those before it are counted
        if self.rows == 1:
            self.since, self.size = time.monotonic(), self.cache.shards.grown
        if self.rows == 1 + FIRST:
            self._say((time.monotonic() - self.since) / FIRST, (self.cache.shards.grown - self.size) / FIRST)

    def _say(self, seconds: float, size: float) -> None:
        """What is left, by what a row takes."""
        left = self.missing - self.rows
        if self.told and left * seconds > LONG:
            note(line(left * self.processes, self.processes / seconds, size, self.cache.folder))
            if self.later:
                note(f"the {self.later} rows that the run draws after these take up to {self.later * size / 1e9:.3g} GB more there")
        if self.strict:
            require_space(self.cache.folder, round(left * self.processes * size))


def line(rows: int, rate: float, size: float, folder: Path) -> str:
    """What is left to do.

    Args:
        rate: rows a second.
        size: bytes of a row.
    """
    free = free_space(folder) / 1e9
    time = f"{format_duration(rows / rate)} at {speed(rate)}"
    return (
        f"{rows} rows are to be encoded: {time}, and {rows * size / 1e9:.3g} GB ({size / 1e6:.3g} MB a row) "
        f"in {folder}, where {free:.3g} GB are free"
    )
