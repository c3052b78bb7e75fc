"""The parts of an estimate of a process's memory, and their sums."""

from dataclasses import dataclass
from typing import Literal, get_args

ACTIVATIONS = 34
"""Values of 16 bits kept for the backward of one transformer layer, in units of tokens x width, with an attention that does not keep
its matrix (Korthikanti et al., arXiv 2205.05198, section 4)."""
CONTEXT = 0.8
"""GB that CUDA, its libraries and their workspaces take before the first tensor: an assumption."""
Phase = Literal["always", "encoding", "rollout", "training", "window"]


@dataclass(frozen=True)
class Part:
    """One line of the estimate, for one process."""

    name: str
    gb: float
    phase: Phase = "always"
    """Encoding comes before the rest is on the device; rollout, training and a window's encoding are on top of what is there always."""
    host: bool = False
    """In main memory."""
    shared: bool = False
    """Of a file as it is: there once for all processes of a machine."""


def peak(parts: list[Part]) -> float:
    """GB of the largest phase on the device."""
    gb = {phase: sum(p.gb for p in parts if p.phase == phase and not p.host) for phase in get_args(Phase)}
    return max(gb["always"] + max(gb["rollout"], gb["training"], gb["window"]), gb["encoding"] + CONTEXT)


def peak_of(parts: list[Part], phase: Phase) -> float:
    """GB on the device in one phase of an epoch."""
    return sum(p.gb for p in parts if p.phase in ("always", phase) and not p.host)


def in_main_memory(parts: list[Part], shared: bool = False) -> float:
    """GB of main memory in the larger phase: of one process for itself, or what all of a machine share."""
    mine = [p for p in parts if p.host and p.shared == shared]
    return max(sum(p.gb for p in mine if (p.phase == "encoding") == early) for early in (False, True))


def of_machine(parts: list[Part], processes: int) -> float:
    """GB of main memory that so many processes of a machine take together, at most."""
    return processes * in_main_memory(parts) + in_main_memory(parts, shared=True)
