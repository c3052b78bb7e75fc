"""Measurements of the first encoded rows: the time and disk space of all rows are printed, and the free space is checked."""

import time
from pathlib import Path

from flow_factory.data.cache import ConditionCache
from flow_factory.data.cache_folder import free_space, require_space
from flow_factory.utils.terminal import format_duration, note, speed

FIRST = 8
"""The number of measured rows. The row before them includes the loading of the encoders and is not measured."""
LONG = 10.0
"""The least number of seconds that is reported."""


class EncodingTimer:
    """Measures the encoding of one process's share of rows.

    Args:
        missing: the number of rows that this process encodes. The other processes have about as many.
        processes: the number of processes that share the rows.
        verbose: whether this process prints the line.
        strict: whether a full disk is an error. A run that has already started continues without a cache.
        later: the number of rows that the run draws later, over all processes.
    """

    def __init__(self, cache: ConditionCache, missing: int, processes: int, verbose: bool, strict: bool = True, later: int = 0):
        self.cache, self.missing, self.processes, self.verbose, self.strict, self.later = cache, missing, processes, verbose, strict, later
        self.rows, self.since, self.size = -1, 0.0, 0

    def row(self) -> None:
        """Called before each row.

        Raises:
            UserError: the remaining rows do not fit the disk.
        """
        self.rows += 1
        if self.rows in (1, 1 + FIRST):
            self.cache.writer.wait_quietly()  # so that all earlier rows are on the disk
        if self.rows == 1:
            self.since, self.size = time.monotonic(), self.cache.shards.grown
        if self.rows == 1 + FIRST:
            self._report((time.monotonic() - self.since) / FIRST, (self.cache.shards.grown - self.size) / FIRST)

    def _report(self, seconds: float, size: float) -> None:
        """Prints the remaining time and space."""
        left = self.missing - self.rows
        if self.verbose and left * seconds > LONG:
            note(line(left * self.processes, self.processes / seconds, size, self.cache.folder))
            if self.later:
                note(f"the {self.later} rows that the run draws later take up to {self.later * size / 1e9:.3g} GB more there")
        if self.strict:
            require_space(self.cache.folder, round(left * self.processes * size))


def line(rows: int, rate: float, size: float, folder: Path) -> str:
    """A line with the remaining rows, their time and their size.

    Args:
        rate: rows per second.
        size: bytes for each row.
    """
    free = free_space(folder) / 1e9
    time = f"{format_duration(rows / rate)} at {speed(rate)}"
    return (
        f"{rows} rows are to be encoded: {time}, and {rows * size / 1e9:.3g} GB ({size / 1e6:.3g} MB a row) "
        f"in {folder}, where {free:.3g} GB are free"
    )
