"""Faults, by way of a reward: it is one key of the YAML, and in every process that the launcher starts.

rewards.reward_model=tests.tiny.faults.Faulty, and in the environment FAULT="RANK MODULE:FUNCTION CALL WHAT": in the process of that rank
WHAT happens when the function is called for the CALL-th time, before it runs. Several are separated by semicolons.
"""

import itertools
import os
import resource
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flow_factory.distributed import liveness
from flow_factory.distributed.rendezvous import limit_groups
from flow_factory.rewards.jpeg import JpegCompressibility
from flow_factory.training.run import Run
from flow_factory.utils.errors import GradientError
from tests.tiny.killed import trap

LARGEST = 8192
"""Bytes that fit into a file on a full disk."""


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def terminate_launcher() -> None:
    os.kill(os.getppid(), signal.SIGTERM)


def interrupt_twice() -> None:
    """From a thread: the second Ctrl-C comes when the first has been heard."""
    interrupt = signal.getsignal(signal.SIGINT).__self__  # type: ignore[union-attr]
    os.kill(os.getpid(), signal.SIGINT)
    while interrupt.signal is None:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)


def full(largest: int = LARGEST) -> None:
    """As a full disk: a write fails. Python ignores the signal that comes with it."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def brimful() -> None:
    """Not a line more."""
    full(1)


def out_of_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def dawdle() -> None:
    """Until all others wait for this process where they may wait without limit: of some work, for a second, only this one is not done.

    Where they wait in a collective, or for nobody, this has no end.
    """
    assert liveness.here is not None
    before: set[str] = set()
    while not before:
        first = awaited(liveness.here)
        time.sleep(1)
        before = first & awaited(liveness.here)


def awaited(here: liveness.ProcessMonitor) -> set[str]:
    """The work that all others have done, and this process not."""
    done: dict[str, set[int]] = {}
    for key in here.store.list_keys():  # type: ignore[attr-defined]
        if key.endswith("/done"):
            work, rank, _ = key.rsplit("/", 2)
            done.setdefault(work, set()).add(int(rank))
    return {work for work, ranks in done.items() if {*range(here.size)} - ranks == {here.rank}}


def impatient() -> None:
    """From here on a collective may take two seconds."""
    limit_groups(2)


def hang() -> None:
    """For ever, with no ear for signals or exceptions, as a collective of which a process has died may."""
    lock = threading.Lock()
    while True:
        lock.acquire()


def abort() -> None:
    """As NCCL does."""
    os.abort()


FAULTS: dict[str, Callable[[], None]] = {
    f.__name__: f for f in (kill, terminate_launcher, interrupt_twice, full, brimful, out_of_memory, dawdle, hang, abort, impatient)
}


class Faulty(JpegCompressibility):
    """Scores as any other, and brings the fault along."""

    def __init__(self, *given: Any):
        super().__init__(*given)
        for fault in os.environ["FAULT"].split(";"):
            rank, path, call, what = fault.split()
            if os.environ.get("RANK", "0") == rank:
                trap(path, int(call), FAULTS[what])


def poisoned(run: Run) -> dict[str, Any]:
    """An epoch whose second loss is not a number on the last process: what is said, and how far the weights moved after it."""
    engine, calls = run.context.engine, itertools.count(1)
    parts, backward, rank = [engine.part(p) for p in run.context.policy.trained().values()], engine.backward, run.context.accelerator
    before: list[Tensor] = []

    def backward_poisoned(loss: Tensor) -> None:
        last = next(calls) == 2
        if last:
            before.extend(p.detach().clone() for p in parts)
        backward(loss * torch.nan if last and rank.is_last_process else loss)

    engine.backward = backward_poisoned  # type: ignore[method-assign]
    try:
        run.trainer.epoch()
    except GradientError as error:
        said = str(error)
    return {"engine": engine.name, "said": said, "moved": sum(float((a - b).abs().sum()) for a, b in zip(before, parts, strict=True))}
