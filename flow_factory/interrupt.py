"""SIGTERM and Ctrl-C as a question that the loop asks where it can stop exactly."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
from accelerate import Accelerator


class Interrupted(Exception):
    """The run was asked to stop, and stands where a resumed run goes on exactly."""


ECHO = 5.0
"""Seconds in which a second SIGTERM is the same one: Slurm signals every process of a step, and the launcher passes on what it gets."""


class Interrupt:
    """Set by the first SIGTERM or Ctrl-C; the second Ctrl-C stops at once, and so does a SIGTERM long after the first."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.since = 0.0

    def check(self) -> None:
        """Raises `Interrupted` if a signal has come."""
        if self.signal is not None:
            raise Interrupted(self.signal.name)

    def agree(self, accelerator: Accelerator) -> None:
        """Raises `Interrupted` on all processes if a signal has come to any: to be called by all at the same place."""
        came = torch.tensor(float(self.signal is not None), device=accelerator.device)
        if accelerator.reduce(came, "sum").item() > 0:
            raise Interrupted(self.signal.name if self.signal is not None else "another process was interrupted")

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self.since = signal.Signals(number), time.monotonic()
        elif number == signal.SIGINT or time.monotonic() - self.since > ECHO:
            raise KeyboardInterrupt

    @contextmanager
    def watching(self) -> Iterator["Interrupt"]:
        """Handlers are in place inside, and the former ones return after."""
        former = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield self
        finally:
            for s, handler in former.items():
                signal.signal(s, handler)
