"""Which process the others wait for: of each phase what it took on every process, and a line that names the slowest."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flow_factory.utils.terminal import format_duration

logger = logging.getLogger(__name__)
COMPARED = ("rollout", "reward", "optimise", "eval")
"""Phases in which all processes have as much to do."""
LAG = 0.2
"""What the slowest takes longer than the others do, from which on it is worth a line: a share of their time."""
FEW = 0.02
"""A share of the time of all phases that this must be, too."""
LONG = 60.0
"""Seconds that it must be to be said at the first time; less may be a first call's, and is said when it comes again."""


@dataclass(frozen=True)
class Spent:
    """Of a phase, on every process: (processes,) each, in seconds and GB."""

    work: Tensor
    wait: Tensor
    """For the others, behind the work."""
    decode: Tensor
    """Of the work, what the VAE took to make pictures of latents."""
    peak: Tensor
    """Memory of the device."""

    @classmethod
    def of(cls, table: Tensor) -> "Spent":
        """Args:
        table: (processes, 5): work, waiting, of the work what all end together, decoding, memory.
        """
        work, wait, shared, decode, peak = table.unbind(1)
        late = shared - shared.min()
        return cls(work - late, wait + late, decode, peak)


class Slowest:
    """Looks at the phases of each epoch, and says when a process lags: at the first time, if it is by a minute, then at the second in a
    row, the fourth, the eighth.

    Args:
        team: so many processes in a row do the same work, of which the first is looked at.
    """

    def __init__(self, team: int = 1):
        self.team = team
        self.row: dict[str, tuple[int, int]] = {}
        """Phase -> (the process that lagged the last time, how often in a row)."""

    def look(self, spent: Mapping[str, Spent], hosts: Sequence[str], parts: Mapping[str, Sequence[int]]) -> None:
        """Args:
        hosts: each process's machine.
        parts: of phases in which processes have not as much to do as others, how much each has.
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
    """(number of the slowest process, its seconds, the median of the others'), where it lags behind them.

    Args:
        work: (processes,) seconds.
        least: seconds that it must be behind.
    """
    if len(work) < 2:
        return None
    who = int(work.argmax())
    takes, others = float(work[who]), float(torch.cat([work[:who], work[who + 1 :]]).median())
    return (who, takes, others) if takes - others > max(LAG * others, least) else None


def precisely(seconds: float) -> str:
    """`3.2 s`, `12 min`."""
    return f"{seconds:.3g} s" if seconds < 100 else format_duration(seconds)
