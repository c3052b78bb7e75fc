"""SIGTERM and Ctrl-C: before a run begins they end the program, then they are a question that the loop asks where it can stop exactly.

Nothing heavy is imported here: the command listens from its first line on.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(Exception):
    """The run was asked to stop, and stands where a resumed run goes on exactly."""


class Stopped(KeyboardInterrupt):
    """The program was asked to stop at once; says by what."""


ELSEWHERE = "another process was interrupted"
ECHO = 5.0
"""Seconds in which a second SIGTERM is the same one: Slurm signals every process of a step, and the launcher passes on what it gets."""


class Listener:
    """The first signal ends the program, as Ctrl-C does any Python program."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.since = 0.0

    def check(self) -> None:
        """Raises `Stopped` if a signal has come: a library may have taken the first one for a failed import."""
        if self.signal is not None:
            raise Stopped(self.signal.name)

    @staticmethod
    def close() -> None:
        """No signal is heard from here on: the program is ending, and says why."""
        for s in (signal.SIGTERM, signal.SIGINT):
            signal.signal(s, signal.SIG_IGN)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal, self.since = signal.Signals(number), time.monotonic()
        raise Stopped(self.signal.name)

    @contextmanager
    def watching(self) -> Iterator["Listener"]:
        """Handlers are in place inside, and the former ones return after. A thread has none: Python hears signals in the first alone."""
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
    """Set by the first SIGTERM or Ctrl-C; the second Ctrl-C stops at once, and so does a SIGTERM long after the first."""

    anywhere = False
    """Whether the first signal raises where it comes, see `at_once`."""
    elsewhere: Callable[[], bool] = staticmethod(lambda: False)
    """Whether another process has been asked to stop, as far as is known here."""

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """For code that may hang, and of which nothing remains: the first signal raises `Interrupted` there."""
        self.anywhere = True
        try:
            yield
        finally:
            self.anywhere = False

    @contextmanager
    def hearing(self, elsewhere: Callable[[], bool]) -> Iterator[None]:
        """`look` asks this, inside."""
        self.elsewhere, former = elsewhere, self.elsewhere
        try:
            yield
        finally:
            self.elsewhere = former

    def look(self) -> None:
        """Raises `Interrupted` if a signal has come here or to another process: between the parts of long work, in `all_or_none`."""
        self.check()
        if self.elsewhere():
            raise Interrupted(ELSEWHERE)

    def check(self) -> None:
        """Raises `Interrupted` if a signal has come."""
        if self.signal is not None:
            raise Interrupted(self.signal.name)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and (number == signal.SIGINT or time.monotonic() - self.since > ECHO):
            raise Stopped(signal.Signals(number).name)
        if self.signal is None:
            self.signal, self.since = signal.Signals(number), time.monotonic()
            again = "Ctrl-C again stops at once" if number == signal.SIGINT else "a second one after five seconds stops at once"
            if os.environ.get("RANK", "0") == "0":  # by `os.write`, for `print` may be what was interrupted
                os.write(2, f"\n{self.signal.name}: stopping where the run can go on exactly, and saving its state; {again}\n".encode())
            if self.anywhere:
                raise Interrupted(self.signal.name)
