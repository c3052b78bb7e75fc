"""Faults by way of a reward: one entry of the YAML, and they are in every process that the launcher starts.

rewards.reward_model=tests.tiny.faults.Faulty, and in the environment FAULT="RANK MODULE:FUNCTION CALL WHAT": in the process of that rank
WHAT happens when the function is called for the CALL-th time, before it runs.
"""

import os
import resource
import signal
from collections.abc import Callable
from typing import Any

import torch

from flow_factory.rewards.jpeg import JpegCompressibility
from tests.tiny.killed import trap

LARGEST = 8192
"""Bytes of a file on a full disk."""


def full() -> None:
    """As a full disk: writes beyond the first bytes of a file fail (Python ignores the signal that comes with it)."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def out_of_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


FAULTS: dict[str, Callable[[], None]] = {
    "full": full,
    "out_of_memory": out_of_memory,
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "terminate_launcher": lambda: os.kill(os.getppid(), signal.SIGTERM),
    "interrupt_twice": lambda: [os.kill(os.getpid(), signal.SIGINT) for _ in range(2)] and None,
}


class Faulty(JpegCompressibility):
    """Scores as any other, and brings the fault along."""

    def __init__(self, *given: Any):
        super().__init__(*given)
        rank, path, call, what = os.environ["FAULT"].split()
        if os.environ.get("RANK", "0") == rank:
            trap(path, int(call), FAULTS[what])
