"""GARDO (arXiv 2512.24138): which samples have a KL term, and when the reference is reset to the policy."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flow_factory.config import GateConfig
from flow_factory.core.uncertainty import REMEMBERED, adapted, gated, mean_doubt
from flow_factory.training.context import TrainingContext
from flow_factory.types import Metrics

SHARE, MOVED = "kl_gate", "kl_reset"
"""Keys of `Progress.memory`: the share with the mean uncertainties of the last epochs; the epoch before the last reset."""


@dataclass
class KLGate:
    """The gate of a run. Its memory changes only at the end of an epoch, so an interrupted epoch can be repeated."""

    context: TrainingContext
    train: GateConfig
    pending: list[float] | None = field(default=None, init=False)
    """The memory after this epoch."""

    def weights(self, doubts: Tensor) -> tuple[Tensor, Metrics]:
        """(G, n) uncertainties of an epoch's samples -> their weights in the KL term, of mean 1 or all 0; and metrics."""
        assert self.train.kl_gate_share is not None
        share, *before = self.context.progress.memory.get(SHARE, [self.train.kl_gate_share])
        mean = mean_doubt(doubts)
        share = adapted(share, mean, before, self.train.kl_gate_bounds)
        self.pending = [share, *[*before, mean][-REMEMBERED:]]
        gate = gated(doubts.flatten(), share).view_as(doubts).float()
        part = gate.mean()
        metrics = {"kl_gate_share": torch.tensor(share), "gated_share": part, "uncertainty": torch.tensor(mean)}
        return gate / part.clamp(min=1 / gate.numel()), metrics

    def finish(self) -> None:
        """Called at the end of an epoch. It may reset the reference to the policy."""
        memory = self.context.progress.memory
        if self.pending is not None:
            memory[SHARE], self.pending = self.pending, None
        if not self.train.moves_reference:
            return
        now, last = self.context.progress.epoch, memory.get(MOVED, [0.0])[0]
        far = self.furthest() > (self.train.kl_reset_threshold or math.inf)
        moves = far or now - last > (self.train.kl_reset_epochs or math.inf)
        if moves:
            self.context.store.blend("ref", 0.0)
            memory[MOVED] = [float(now)]
        self.context.meter.add({"reference_moved": torch.tensor(float(moves))})

    def furthest(self) -> float:
        """The largest KL of a micro-batch of this epoch, on any process."""
        values = self.context.meter.values["kl_held"]
        most = torch.stack([value.float() for value in values]).max().reshape(1)
        return self.context.accelerator.gather(most).max().item()
