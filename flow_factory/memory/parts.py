"""The parts of an estimate of a process's memory, and their sums."""

from dataclasses import dataclass
from typing import Literal, get_args

ACTIVATIONS = 34
"""16-bit values stored for the backward of one transformer layer, in units of tokens x width, with an attention that does not store its
matrix (Korthikanti et al., arXiv 2205.05198, section 4)."""
CONTEXT = 0.8
"""GB that CUDA, its libraries and their workspaces take before the first tensor (an assumption)."""
Phase = Literal["always", "encoding", "rollout", "slope", "training", "window"]


@dataclass(frozen=True)
class Part:
    """One line of the estimate of one process."""

    name: str
    gb: float
    phase: Phase = "always"
    """`encoding` is before the rest is on the device. The others, of which `slope` is the rewards' gradient, are added to `always`."""
    host: bool = False
    """Whether the part is in main memory."""
    shared: bool = False
    """Whether the part is a memory map of a file, which all processes of a machine share."""


def peak(parts: list[Part]) -> float:
    """GB of the largest phase on the device."""
    gb = {phase: sum(p.gb for p in parts if p.phase == phase and not p.host) for phase in get_args(Phase)}
    return max(gb["always"] + max(gb["rollout"], gb["slope"], gb["training"], gb["window"]), gb["encoding"] + CONTEXT)


def peak_of(parts: list[Part], phase: Phase) -> float:
    """GB on the device in one phase of an epoch."""
    return sum(p.gb for p in parts if p.phase in ("always", phase) and not p.host)


def in_main_memory(parts: list[Part], shared: bool = False) -> float:
    """GB of main memory in the larger phase: private memory of one process, or memory that all processes of a machine share."""
    mine = [p for p in parts if p.host and p.shared == shared]
    return max(sum(p.gb for p in mine if (p.phase == "encoding") == early) for early in (False, True))


def of_machine(parts: list[Part], processes: int) -> float:
    """GB of main memory of this many processes of a machine together, at most."""
    return processes * in_main_memory(parts) + in_main_memory(parts, shared=True)
