"""The slowest process: the cost of each phase on every process, and a line if others wait for one."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flow_factory.utils.terminal import format_duration

logger = logging.getLogger(__name__)
COMPARED = ("rollout", "reward", "optimise", "eval")
"""The phases in which all processes have the same amount of work."""
LAG = 0.2
"""The least lag that is reported, as a share of the others' time."""
FEW = 0.02
"""The least lag that is reported, as a share of the time of all phases."""
LONG = 60.0
"""The least lag in seconds that is reported at once. A shorter one may be a first call's, and is reported when it is repeated."""


@dataclass(frozen=True)
class PhaseCost:
    """The cost of a phase on every process: tensors (processes,) in seconds and GB."""

    work: Tensor
    wait: Tensor
    """Waiting for the others."""
    decode: Tensor
    """The part of the work that is decoding by the VAE."""
    peak: Tensor
    """Peak memory of the device."""

    @classmethod
    def of(cls, table: Tensor) -> "PhaseCost":
        """Args:
        table: (processes, 5): work, waiting, the part of the work that all end together, decoding, memory.
        """
        work, wait, shared, decode, peak = table.unbind(1)
        late = shared - shared.min()
        return cls(work - late, wait + late, decode, peak)


class Slowest:
    """Reports a process that lags: the first time if by a minute, then the second time in a row, the fourth, the eighth.

    Args:
        team: the number of consecutive processes that do the same work. Only the first of them is compared.
    """

    def __init__(self, team: int = 1):
        self.team = team
        self.row: dict[str, tuple[int, int]] = {}
        """Phase -> (the process that lagged last, the number of times in a row)."""

    def look(self, spent: Mapping[str, PhaseCost], hosts: Sequence[str], parts: Mapping[str, Sequence[int]]) -> None:
        """Args:
        hosts: the machine of each process.
        parts: phase -> amount of work of each process, if it differs.
        """
        total = sum(float(s.work.mean()) for s in spent.values())
        for phase in [phase for phase in spent if phase in COMPARED]:
            work = spent[phase].work[:: self.team]
            if phase in parts:
                share = torch.tensor(parts[phase], dtype=work.dtype)[:: self.team]
                work = work / share.clamp(min=1) * share.max()
            found = lagging(work, FEW * total)
            before, times = self.row.get(phase, (-1, 0))
            if found is None:
                self.row.pop(phase, None)
                continue
            who, takes, others = found
            times = times + 1 if who == before else 1
            self.row[phase] = who, times
            if (times > 1 or takes - others > LONG) and times.bit_count() == 1:
                rank, often = who * self.team, f", {times} times in a row" if times > 1 else ""
                text = "process %d of %d, on %s, is the slowest in the %s phase: %s of work, and %s elsewhere%s; the others wait for it"
                logger.warning(text, rank, len(hosts), hosts[rank], phase, precisely(takes), precisely(others), often)


def lagging(work: Tensor, least: float) -> tuple[int, float, float] | None:
    """(rank of the slowest process, its seconds, the median of the others') if it lags; else None.

    Args:
        work: (processes,) seconds.
        least: the least lag in seconds.
    """
    if len(work) < 2:
        return None
    who = int(work.argmax())
    takes, others = float(work[who]), float(torch.cat([work[:who], work[who + 1 :]]).median())
    return (who, takes, others) if takes - others > max(LAG * others, least) else None


def precisely(seconds: float) -> str:
    """`3.2 s`, `12 min`."""
    return f"{seconds:.3g} s" if seconds < 100 else format_duration(seconds)
