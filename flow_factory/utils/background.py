"""Jobs in background threads."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as until
from weakref import WeakSet

_all: WeakSet["Background"] = WeakSet()


def busy() -> bool:
    """Whether any job is still running."""
    return any(one.pending is not None and not one.pending.done() for one in list(_all))


class Background:
    """Runs one job at a time in a thread. An error of a job is raised by the next call."""

    def __init__(self, name: str):
        self.threads = ThreadPoolExecutor(1, name)
        self.pending: Future[None] | None = None
        _all.add(self)

    def start(self, job: Callable[[], None]) -> None:
        """Waits for the previous job and starts this one."""
        self.wait()
        self.pending = self.threads.submit(job)

    def check(self) -> None:
        """Raises the error of the last job if it has ended. Does not wait."""
        if self.pending is not None and self.pending.done():
            self.wait()

    def wait_quietly(self) -> None:
        """Waits for the last job. Its error is left to the next call."""
        if self.pending is not None:
            until([self.pending])

    def wait(self) -> None:
        """Waits for the last job and raises its error."""
        if self.pending is not None:
            pending, self.pending = self.pending, None
            pending.result()
