"""Means of an epoch's metrics over all samples of all processes."""

from collections.abc import Mapping, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

from flow_factory.distributed.collectives import mean_over_ranks


def means_over_samples(accelerator: Accelerator, values: Mapping[str, Sequence[Tensor]]) -> dict[str, float]:
    """`train/<name>`: the mean of each metric; `train/ratio_std`: the standard deviation of the likelihood ratio.

    A metric named `<metric>/<which samples>` is of some samples only, and processes may have different numbers of them. All
    processes call this together.
    """
    device = accelerator.device
    joined = {name: torch.cat([v.reshape(-1).float().to(device) for v in its]) for name, its in values.items()}
    some = {name: joined.pop(name) for name in list(joined) if "/" in name}
    means = {f"train/{name}": its.mean() for name, its in joined.items()}
    if "ratio" in joined:
        off = joined["ratio"] - 1  # a spread of 1e-5 is lost in the squares of ratios
        means |= {"off": off.mean(), "squares": off.square().mean()}
    counts = {f"count of {name}": torch.tensor(float(len(its)), device=device) for name, its in some.items()}
    found = mean_over_ranks(accelerator, means | {name: its.sum() for name, its in some.items()} | counts)
    for name in some:
        total, count = found.pop(name), found.pop(f"count of {name}")
        found |= {f"train/{name}": total / count} if count else {}
    if "ratio" not in joined:
        return found
    off_1, squares = found.pop("off"), found.pop("squares")
    return found | {"train/ratio_std": max(0.0, squares - off_1**2) ** 0.5}
