"""What processes tell each other."""

from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import Tensor


def gather_slots(accelerator: Accelerator, mine: Tensor) -> Tensor:
    """(groups of this process, ...) of every process -> (all groups, ...) in the order of their slots, on the CPU.

    Process r of w holds the slots r, r + w, ...; the same order for every w keeps sums over groups the same to the bit.
    """
    world = accelerator.num_processes
    everyone = accelerator.gather(mine.to(accelerator.device)).cpu()
    return everyone.reshape(world, -1, *mine.shape[1:]).transpose(0, 1).reshape(-1, *mine.shape[1:])


def mean_over_ranks(accelerator: Accelerator, values: Mapping[str, Tensor]) -> dict[str, float]:
    """Mean of each 0-dim value over the processes."""
    stacked = torch.stack([v.float().to(accelerator.device) for v in values.values()])
    means = accelerator.reduce(stacked, "mean").tolist()
    return dict(zip(values, means, strict=True))


def most_of_ranks(accelerator: Accelerator, count: int) -> int:
    """The largest of the processes' counts."""
    return int(accelerator.gather(torch.tensor([count], device=accelerator.device)).max())
