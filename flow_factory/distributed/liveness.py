"""The `ProcessMonitor` of this process. With a single process there is none, and each function does nothing."""

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
"""Timeout in seconds, see `release_collectives`."""
GLOO = "pt_gloo_runloop"
"""Torch's name of the threads that run gloo's collectives."""


here: ProcessMonitor | None = None
"""The monitor of this process, from the rendezvous on."""


def start_monitor(store: "Store", rank: int, size: int, address: str, limit: float) -> None:
    """Starts the monitor. All processes call this together.

    Raises:
        RendezvousError: the first process cannot be reached.
    """
    global here
    here = ProcessMonitor(store, rank, size, address, limit)


def _forget() -> None:
    """Removes the monitor in a forked child, because the connections belong to its parent."""
    global here
    if here is not None:
        here.close()
    here = None


os.register_at_fork(after_in_child=_forget)


def set_activity(what: str) -> None:
    """Reports the activity of this process to the others. To be called at the start of a phase, not at each step."""
    if here is not None:
        here.set_activity(what)


def current_activity() -> str:
    """The activity of this process."""
    return here.now if here is not None else ""


def leave(word: str = LEFT) -> None:
    """See `ProcessMonitor.leave`."""
    if here is not None:
        here.leave(word)


def release_collectives(well: bool) -> None:
    """Waits before Python exits until gloo's threads have freed the last collective's tensors. They need Python, else they abort.

    Destroyed groups end their threads. If a library holds the groups (DeepSpeed), or a failed collective may still run, there is no signal
    when the tensors are freed. It takes microseconds, so a short sleep suffices.

    Args:
        well: whether the run has succeeded on all processes.
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
    """The number of gloo's threads in this process; 0 if it is unknown."""
    names: list[str] = []
    for thread in Path("/proc/self/task").glob("*/comm"):
        with suppress(OSError):  # the thread has just ended
            names.append(thread.read_text().strip())
    return names.count(GLOO)


def lost_process(error: BaseException) -> str:
    """See `ProcessMonitor.why`."""
    return here.why(error) if here is not None else DIED


def who_is_gone() -> str | None:
    """See `ProcessMonitor.who_is_gone`."""
    return here.who_is_gone() if here is not None else None
