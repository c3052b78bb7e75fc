"""The KL term of a point, in which samples may have different weights."""

import torch
from torch import Tensor

from flow_factory.config import GateConfig
from flow_factory.types import Metrics, Point


def kl_term(config: GateConfig, point: Point, distances: Tensor) -> tuple[Tensor, Metrics]:
    """kl_beta times the weighted mean of the samples' distances (n,) from the reference, and its metrics."""
    kl = (distances if point.kl_weight is None else point.kl_weight * distances).mean()
    metrics = {"kl_div": kl, "kl_loss": config.kl_beta * kl}
    if config.moves_reference:
        held = torch.ones_like(distances) if point.kl_weight is None else (point.kl_weight > 0).to(distances)
        metrics["kl_held"] = (held * distances).sum() / held.sum().clamp(min=1)
    return config.kl_beta * kl, metrics
