"""Background threads beside the training."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as until
from weakref import WeakSet

_all: WeakSet["Background"] = WeakSet()


def busy() -> bool:
    """Whether any job is not done."""
    return any(one.pending is not None and not one.pending.done() for one in list(_all))


class Background:
    """One job at a time, in a thread. What goes wrong in it is raised by the next call."""

    def __init__(self, name: str):
        self.threads = ThreadPoolExecutor(1, name)
        self.pending: Future[None] | None = None
        _all.add(self)

    def start(self, job: Callable[[], None]) -> None:
        """Begins the job when the one before is done."""
        self.wait()
        self.pending = self.threads.submit(job)

    def check(self) -> None:
        """Raises what went wrong, where the last job is done; does not wait."""
        if self.pending is not None and self.pending.done():
            self.wait()

    def settle(self) -> None:
        """Until the last job is done; what went wrong in it is left to the next call."""
        if self.pending is not None:
            until([self.pending])

    def wait(self) -> None:
        """Until the last job is done; raises what went wrong in it."""
        if self.pending is not None:
            pending, self.pending = self.pending, None
            pending.result()
