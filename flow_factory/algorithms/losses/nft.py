"""DiffusionNFT (arXiv 2509.16117): pull the velocity towards good samples and push it off bad ones, on the forward process."""

from typing import Literal

import torch
from torch import Tensor

from flow_factory.algorithms.losses import self_normalised_square
from flow_factory.core.dynamics import like

AdvantageMode = Literal["all", "positive_only", "negative_only", "one_only", "binary"]


def optimality(advantage: Tensor, clip: float = 5.0, mode: AdvantageMode = "all") -> Tensor:
    """r = clip(A, -c, c) / (2 c) + 1/2 in [0, 1], the probability (B,) that a sample is a good one; 1/2 is not a preference, not "bad".

    `mode` selects the part of the advantage: all of it, its positive or its negative part, only whether it is positive ("one_only": 1 or
    0), or its sign ("binary"). The last two leave r within 1/(2 c) of 1/2.

    Raises:
        ValueError: an unknown mode.
    """
    match mode:
        case "all":
            kept = advantage.clamp(-clip, clip)
        case "positive_only":
            kept = advantage.clamp(0, clip)
        case "negative_only":
            kept = advantage.clamp(-clip, 0)
        case "one_only":
            kept = (advantage > 0).to(advantage.dtype)
        case "binary":
            kept = advantage.sign()
        case _:
            raise ValueError(f"no advantage mode {mode!r}; known: all, positive_only, negative_only, one_only, binary")
    return (kept / (2 * clip) + 0.5).clamp(0, 1)


def implicit_velocities(v: Tensor, v_old: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """v+ = beta v + (1 - beta) sg(v_old) and its mirror image v- = (1 + beta) sg(v_old) - beta v."""
    v_old = v_old.detach()
    return beta * v + (1 - beta) * v_old, (1 + beta) * v_old - beta * v


def nft_loss(v: Tensor, v_old: Tensor, x: Tensor, x0: Tensor, s: Tensor, r: Tensor, beta: float, clip: float = 5.0) -> dict[str, Tensor]:
    """c (r L+ + (1 - r) L-) / beta, L+- the self-normalised error of the x0 that v+- predicts from x.

    v_old is the velocity of the rollout's weights. At v = v_old, L+ and L- are equal with opposite gradients, so that r = 1/2 gives none.

    Args:
        x: (B, ...) = (1 - s) x0 + s noise, the state of the velocities.
        r: (B,) of `optimality`.
        beta: how far v+ goes from v_old towards v; 1 or 0.1 in the paper.
        clip: c, the scale of `optimality`: keeps the gradient's size equal to that with unscaled advantages.

    Returns:
        (B,) float64: "loss", and without gradient its parts "positive" (L+) and "negative" (L-).
    """
    plus, minus = (self_normalised_square(x - like(s, x) * u - x0) for u in implicit_velocities(v, v_old, beta))
    loss = clip / beta * torch.lerp(minus, plus, r.to(plus.dtype))
    return {"loss": loss, "positive": plus.detach(), "negative": minus.detach()}
