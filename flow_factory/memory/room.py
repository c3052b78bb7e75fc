"""Whether an estimate fits a GPU, or the main memory of this machine."""

import psutil
import torch

from flow_factory.memory.parts import Part, of_machine, peak

CARDS = (24, 48, 80)
"""GB of common GPUs. They are reported on a machine without a GPU."""
ROOM = 0.92
"""The share of a GPU's memory that an estimate may take, because torch's allocator leaves gaps."""


def fits_memory(parts: list[Part], gpu: float | None, processes: int) -> bool:
    """Whether a process fits a GPU. Without a GPU: whether all processes fit the main memory of this machine.

    Args:
        gpu: GB of the GPU; None for this machine's.
    """
    if gpu is not None or torch.cuda.is_available():
        return peak(parts) < ROOM * (gpu or torch.cuda.get_device_properties(0).total_memory / 1e9)
    later = of_machine([p for p in parts if p.phase != "encoding"], processes)  # encoders stay in main memory
    return processes * peak(parts) + later < 0.8 * psutil.virtual_memory().total / 1e9
