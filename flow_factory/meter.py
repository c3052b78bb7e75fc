"""What an epoch cost and showed: metrics by name, seconds by phase, memory."""

import resource
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import Tensor

from flow_factory import presence
from flow_factory.distributed import mean_over_ranks


class Meter:
    """Collects on the device; `means` is the epoch's one wait for it."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.values: dict[str, list[Tensor]] = defaultdict(list)
        self.seconds: dict[str, float] = defaultdict(float)
        self._inside = 0.0
        """Seconds of the phases inside the one that is under way."""
        self._phase: str | None = None
        """That one."""

    def clear(self) -> None:
        """A new epoch."""
        self.values.clear()
        self.seconds.clear()
        self._inside = 0.0

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Scalars or per-sample values, detached."""
        for name, value in metrics.items():
            self.values[name].append(value)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time inside to a phase of the epoch, which the other processes are told of.

        What a phase inside another takes is none of that one's.
        """
        outer, self._phase = self._phase, name
        presence.doing(f"the {name} phase")
        self._settle()
        start, around, self._inside = time.perf_counter(), self._inside, 0.0
        yield
        self._settle()
        spent = time.perf_counter() - start
        self.seconds[name] += spent - self._inside
        self._inside = around + spent
        self._phase = outer
        if outer is not None:
            presence.doing(f"the {outer} phase")

    def _settle(self) -> None:
        """Waits for what the device has been given."""
        if self.accelerator.device.type == "cuda":
            torch.cuda.synchronize()

    def means(self) -> dict[str, float]:
        """`train/<name>`: the mean over all that was added on all processes; and the spread of the ratio."""
        device = self.accelerator.device
        joined = {name: torch.cat([v.reshape(-1).float().to(device) for v in values]) for name, values in self.values.items()}
        means = {f"train/{name}": values.mean() for name, values in joined.items()}
        if "ratio" not in joined:
            return mean_over_ranks(self.accelerator, means)
        off = joined["ratio"] - 1  # a spread of 1e-5 is lost in the squares of ratios
        said = mean_over_ranks(self.accelerator, means | {"off": off.mean(), "squares": off.square().mean()})
        off_1, squares = said.pop("off"), said.pop("squares")
        return said | {"train/ratio_std": max(0.0, squares - off_1**2) ** 0.5}

    def costs(self, samples: int) -> dict[str, float]:
        """Seconds of each phase, samples per second over all processes in each and in all, peak memory."""
        total = sum(self.seconds.values())
        costs = {f"time/{phase}_s": s for phase, s in self.seconds.items()} | {"time/epoch_s": total}
        costs |= {f"perf/{phase}_samples_per_s": samples / s for phase, s in self.seconds.items()}
        return costs | {"perf/samples_per_s": samples / total, "perf/peak_memory_gb": self.peak_memory_gb()}

    def share_of_card(self) -> float:
        """The peak as a share of the device's memory; 0 on a CPU."""
        device = self.accelerator.device
        if device.type != "cuda":
            return 0.0
        return torch.cuda.max_memory_allocated(device) / torch.cuda.get_device_properties(device).total_memory

    def peak_memory_gb(self) -> float:
        """Most memory held so far: the device's, or the process's on a CPU."""
        if self.accelerator.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.accelerator.device) / 1e9
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
