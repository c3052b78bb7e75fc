"""The measurements of an epoch: metrics by name, seconds of work and of waiting by phase, memory."""

import socket
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from flow_factory.distributed import barriers, liveness
from flow_factory.training.metric_means import means_over_samples
from flow_factory.training.peak_memory import PeakMemory
from flow_factory.training.slowest import PhaseCost, Slowest

EPOCH = ("encode", "rollout", "reward", "advantage", "optimise")
"""The phases of an epoch in their order."""
SAMPLED = ("rollout", "reward", "optimise")
"""The phases that process every sample."""


class Observer(Protocol):
    """An observer of the phases."""

    def begins(self, phase: str) -> None: ...
    def steps(self, phase: str, what: str) -> None:
        """A step of the phase has ended: a call of the pipeline, a micro-batch, ..."""

    def ends(self, phase: str) -> None: ...


@dataclass
class _Open:
    """A phase that has not ended."""

    name: str
    start: float
    waited: float
    """Seconds that this process had waited for others before the phase."""
    inner: float = 0.0
    """Seconds of nested phases."""
    inner_wait: float = 0.0


@dataclass
class _Here:
    """The cost of a phase on this process."""

    work: float = 0.0
    wait: float = 0.0
    shared: list[tuple[Any, Any]] = field(default_factory=list)
    """(start, end) of work that all processes end together: the reduction of a gradient and the step after it."""
    shared_s: float = 0.0
    decode: list[tuple[Any, Any]] = field(default_factory=list)
    decode_s: float = 0.0
    peak: float = 0.0
    """Peak memory of the device in GB."""


class Meter:
    """Collects on the device. Only `means` and `costs` wait for it.

    Args:
        team: the number of consecutive processes that do the same work (`model.context_parallel`).
    """

    def __init__(self, accelerator: Accelerator, team: int = 1):
        self.accelerator, self.cuda = accelerator, accelerator.device.type == "cuda"
        self.values: dict[str, list[Tensor]] = defaultdict(list)
        self.here: dict[str, _Here] = defaultdict(_Here)
        self.slowest = Slowest(team)
        self.hosts: list[str] = []
        self.observers: list[Observer] = []
        self.began = time.perf_counter()
        self.memory = PeakMemory(accelerator.device)
        self._open: list[_Open] = []

    def clear(self) -> None:
        """Starts a new epoch."""
        self.values.clear()
        self.here.clear()
        self._open.clear()
        self.began = time.perf_counter()

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Adds scalars or per-sample values, detached."""
        for name, value in metrics.items():
            self.values[name].append(value)

    # -- phases ----------------------------------------------------------------------------------------------------------------

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time inside to a phase, as work and as waiting for others. The other processes are told of the phase.

        The time of a nested phase is not counted for the outer one.
        """
        liveness.set_activity(f"the {name} phase")
        self._settle()
        mine = _Open(name, time.perf_counter(), barriers.waited())
        self._open.append(mine)
        for observer in self.observers:
            observer.begins(name)
        try:
            yield
            self._settle()
            self._account(mine)
        finally:
            while self._open and self._open.pop() is not mine:
                pass
        for observer in self.observers:
            observer.ends(name)
        if self._open:
            liveness.set_activity(f"the {self._open[-1].name} phase")

    def _account(self, mine: _Open) -> None:
        """Adds the cost of a phase that ends."""
        whole, waited, here = time.perf_counter() - mine.start, barriers.waited() - mine.waited, self.here[mine.name]
        here.wait += waited - mine.inner_wait
        here.work += whole - mine.inner - (waited - mine.inner_wait)
        here.shared_s += self._between(here.shared)
        here.decode_s += self._between(here.decode)
        if len(self._open) > 1:
            self._open[-2].inner += whole
            self._open[-2].inner_wait += waited

    def step(self, what: str) -> None:
        """Reports the end of a step of the current phase: a call of the pipeline, a micro-batch, ..."""
        for observer in self.observers if self._open else ():
            observer.steps(self._open[-1].name, what)

    def tick(self) -> Any:
        """A point in time of the device's stream, or of the CPU. It does not wait."""
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def mark(self) -> tuple[Any, float]:
        """The start of work that all processes end together; see `shared`."""
        return self.tick(), barriers.waited()

    def shared(self, since: tuple[Any, float]) -> None:
        """The end of that work."""
        if self._open:
            here = self.here[self._open[-1].name]
            here.shared.append((since[0], self.tick()))
            here.shared_s -= barriers.waited() - since[1]  # already counted as waiting

    def decoding(self, decode: Callable[..., Any]) -> Callable[..., Any]:
        """Wraps a VAE's `decode`, so that its time is measured as part of the current phase."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            since = self.tick()
            out = decode(*args, **kwargs)
            if self._open:
                self.here[self._open[-1].name].decode.append((since, self.tick()))
            return out

        return timed

    def seconds(self, since: Any, until: Any) -> float:
        """Seconds between two ticks that the device has reached."""
        return since.elapsed_time(until) * 1e-3 if self.cuda else until - since

    def _between(self, pairs: list[tuple[Any, Any]]) -> float:
        """The sum of seconds between pairs of ticks. Clears the list."""
        seconds = sum(self.seconds(*pair) for pair in pairs)
        pairs.clear()
        return seconds

    def _settle(self) -> None:
        """Waits for the device, and records its peak memory for the current phase."""
        if not self.cuda:
            return
        torch.cuda.synchronize()
        peak = self.memory.restart()
        if self._open:
            here = self.here[self._open[-1].name]
            here.peak = max(here.peak, peak)

    # -- results ---------------------------------------------------------------------------------------------------------------

    def means(self) -> dict[str, float]:
        """The means of everything that was added; see `means_over_samples`."""
        return means_over_samples(self.accelerator, self.values)

    def costs(self, samples: int) -> dict[str, float]:
        """Metrics of the epoch: seconds and memory of each phase, samples per second over all processes, peak memory."""
        spent = self.spent(EPOCH)
        total = time.perf_counter() - self.began
        costs = self.as_metrics(spent) | {"time/epoch_s": total}
        if decode := sum(float(s.decode.mean()) for s in spent.values()):
            costs["time/decode_s"] = decode
        took = {phase: float((s.work + s.wait).mean()) for phase, s in spent.items() if phase in SAMPLED}
        costs |= {f"perf/{phase}_samples_per_s": samples / s for phase, s in took.items() if s > 0}
        return costs | {"perf/samples_per_s": samples / total, "perf/peak_memory_gb": self.memory.allocated_gb()}

    def cost(self, phase: str, parts: Sequence[int] | None = None) -> dict[str, float]:
        """Metrics of a phase between epochs. Clears the phase.

        Args:
            parts: the amount of work of each process; None if it is equal.
        """
        spent = self.spent((phase,), {} if parts is None else {phase: parts})
        del self.here[phase]
        return self.as_metrics(spent)

    def spent(self, phases: Sequence[str], parts: Mapping[str, Sequence[int]] | None = None) -> dict[str, PhaseCost]:
        """The cost of these phases on every process. All call this together. It may print a line about the slowest process.

        Of work that processes end together, such as the reduction of a gradient, the shortest time counts as work, and the excess of
        the others as waiting. This is an estimate.
        """
        every = [self.here[phase] for phase in phases]
        mine = torch.tensor([[h.work, h.wait, h.shared_s, h.decode_s, h.peak] for h in every], device=self.accelerator.device)
        table = self.accelerator.gather(mine[None]).cpu().double().unbind(1)
        spent = {phase: PhaseCost.of(t) for phase, t in zip(phases, table, strict=True)}
        if self.accelerator.num_processes > 1:
            self.hosts = self.hosts or gather_object([socket.gethostname()])
            if self.accelerator.is_main_process:
                self.slowest.look(spent, self.hosts, parts or {})
        return spent

    def as_metrics(self, spent: Mapping[str, PhaseCost]) -> dict[str, float]:
        """Metrics: means over the processes, and the maximum of memory."""
        metrics = {f"time/{phase}_s": float(s.work.mean()) for phase, s in spent.items()}
        if self.accelerator.num_processes > 1:
            metrics |= {f"time/{phase}_wait_s": float(s.wait.mean()) for phase, s in spent.items()}
        return metrics | {f"perf/{phase}_peak_memory_gb": float(s.peak.max()) for phase, s in spent.items() if self.cuda}
