"""The `ProcessMonitor` of this process, if it is one of several; without one, each function does nothing."""

import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from flow_factory.distributed.process_monitor import DIED, LEFT, ProcessMonitor

if TYPE_CHECKING:
    from torch.distributed import Store

LET_GO = 0.5
"""Seconds, see `let_go`."""
GLOO = "pt_gloo_runloop"
"""What torch calls the threads in which gloo's collectives run."""


here: ProcessMonitor | None = None
"""This process's, from its meeting the others on."""


def start_monitor(store: "Store", rank: int, size: int, address: str, limit: float) -> None:
    """From now on the others know of this process, and it of them. All call this together.

    Raises:
        MeetingError: the first process cannot be reached.
    """
    global here
    here = ProcessMonitor(store, rank, size, address, limit)


def _forget() -> None:
    """A forked child is none of the processes, and the connections are its parent's."""
    global here
    if here is not None:
        here.close()
    here = None


os.register_at_fork(after_in_child=_forget)


def set_activity(what: str) -> None:
    """Tells the others what this process does from now on: to be said where a phase begins, not at each step."""
    if here is not None:
        here.say(what)


def current_activity() -> str:
    """What this process does."""
    return here.now if here is not None else ""


def leave(word: str = LEFT) -> None:
    """See `ProcessMonitor.leave`."""
    if here is not None:
        here.leave(word)


def let_go(well: bool) -> None:
    """Before Python goes away, threads of gloo let go of the last collective's tensors: they need Python for it, or abort the process.

    The groups take their threads along. Where a library holds the groups (DeepSpeed), or a collective that has failed may still be under
    way, nothing tells when they have let go; it takes them microseconds.

    Args:
        well: whether the run has ended well, on all processes.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_initialized():
        return
    before = _of_gloo()
    if well:
        distributed.destroy_process_group()
    if not well or not before or _of_gloo():
        time.sleep(LET_GO)


def _of_gloo() -> int:
    """How many threads of gloo this process has; 0 also where nothing tells."""
    names: list[str] = []
    for thread in Path("/proc/self/task").glob("*/comm"):
        with suppress(OSError):  # it has just ended
            names.append(thread.read_text().strip())
    return names.count(GLOO)


def why_lost(error: BaseException) -> str:
    """See `ProcessMonitor.why`."""
    return here.why(error) if here is not None else DIED


def who_is_gone() -> str | None:
    """See `ProcessMonitor.who_is_gone`."""
    return here.who_is_gone() if here is not None else None
