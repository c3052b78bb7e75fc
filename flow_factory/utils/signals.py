"""SIGTERM and Ctrl-C. Before a run begins they end the program. Later the loop checks for them where it can stop and resume exactly.

It imports nothing heavy, because the command handles signals from its first line on.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(Exception):
    """The run was asked to stop, and has stopped where a resumed run continues exactly."""


class Stopped(KeyboardInterrupt):
    """The program was asked to stop at once. The message names the signal."""


ELSEWHERE = "another process was interrupted"
ECHO = 5.0
"""Seconds in which a second SIGTERM counts as the same one: Slurm signals every process, and the launcher forwards its signals."""


class Listener:
    """The first signal ends the program, as Ctrl-C ends any Python program."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.since = 0.0

    def check(self) -> None:
        """Raises `Stopped` if a signal has arrived: a library may have caught the first exception as a failed import."""
        if self.signal is not None:
            raise Stopped(self.signal.name)

    @staticmethod
    def close() -> None:
        """Ignores signals from here on, while the program ends and reports why."""
        for s in (signal.SIGTERM, signal.SIGINT):
            signal.signal(s, signal.SIG_IGN)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal, self.since = signal.Signals(number), time.monotonic()
        raise Stopped(self.signal.name)

    @contextmanager
    def watching(self) -> Iterator["Listener"]:
        """Installs the handlers inside the context. In other threads than the main one it does nothing, as Python requires."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        former = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield self
        finally:
            for s, handler in former.items():
                signal.signal(s, handler)


class Interrupt(Listener):
    """Set by the first SIGTERM or Ctrl-C. A second Ctrl-C stops at once, and so does a SIGTERM well after the first."""

    anywhere = False
    """Whether the first signal raises immediately, see `at_once`."""
    elsewhere: Callable[[], bool] = staticmethod(lambda: False)
    """Returns whether another process is known to have been asked to stop."""

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """For code that may block and has no results to keep: inside, the first signal raises `Interrupted` immediately."""
        self.anywhere = True
        try:
            yield
        finally:
            self.anywhere = False

    @contextmanager
    def watching_others(self, elsewhere: Callable[[], bool]) -> Iterator[None]:
        """Inside, `look` also calls this."""
        self.elsewhere, former = elsewhere, self.elsewhere
        try:
            yield
        finally:
            self.elsewhere = former

    def look(self) -> None:
        """Raises `Interrupted` if a signal has arrived here or at another process. `all_or_none` calls it between parts of long work."""
        self.check()
        if self.elsewhere():
            raise Interrupted(ELSEWHERE)

    def check(self) -> None:
        """Raises `Interrupted` if a signal has arrived."""
        if self.signal is not None:
            raise Interrupted(self.signal.name)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and (number == signal.SIGINT or time.monotonic() - self.since > ECHO):
            raise Stopped(signal.Signals(number).name)
        if self.signal is None:
            self.signal, self.since = signal.Signals(number), time.monotonic()
            again = "Ctrl-C again stops at once" if number == signal.SIGINT else "a second one after five seconds stops at once"
            if os.environ.get("RANK", "0") == "0":  # not `print`, which may itself have been interrupted
                os.write(2, f"\n{self.signal.name}: stopping where the run can go on exactly, and saving its state; {again}\n".encode())
            if self.anywhere:
                raise Interrupted(self.signal.name)
