"""Centred reward distillation (arXiv 2603.14128): the policy's own implicit reward is fitted to the given one, up to a constant per prompt.

The authors have published no code; the formulas are those of the public Flow-Factory, but centred over one prompt's group.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from flow_factory.algorithms.losses import kl_v, self_normalised_square


def implicit_reward(v: Tensor, v_old: Tensor, x0: Tensor, noise: Tensor, adaptive: bool = True) -> Tensor:
    """(B,) R = -(error of v - error of v_old): how much more likely x0 is than under the old weights; 0 at v = v_old.

    The errors are against noise - x0: self-normalised (float64) if `adaptive`, else mean squares.
    """
    target = noise - x0
    if adaptive:
        return self_normalised_square(v_old - target) - self_normalised_square(v - target)
    return kl_v(v_old, target) - kl_v(v, target)


def centre_weights(p: Tensor, temperature: float, neutral: float = 0.5) -> Tensor:
    """(K, n) weights of a group's mean, which sum to 1; K = 1, or K = 2 directions, from the good and from the bad side.

    Temperature < 0: uniform. > 0: softmax(p / T) and softmax(-p / T). 0: softmax(p) of the samples above `neutral`, softmax(-p) of those
    below it, uniform where there are none. `neutral` = 0 is the public Flow-Factory, where no p is below it and nearly all are above.

    Args:
        p: (n,) of `nft.optimality`, in [0, 1]: a whole group.
    """
    uniform = torch.full_like(p, 1 / len(p))
    if temperature < 0:
        return uniform[None]
    if temperature > 0:
        return torch.stack([(p / temperature).softmax(0), (-p / temperature).softmax(0)])
    sides = [(p, p > neutral), (-p, p < neutral)]
    return torch.stack([score.where(side, -torch.inf).softmax(0) if side.any() else uniform for score, side in sides])


def crd_loss(
    reward: Tensor,
    p: Tensor,
    centre: tuple[Tensor, Tensor],
    beta: float = 1.0,
    loss_type: Literal["mse", "bce"] = "mse",
    clip: float = 5.0,
) -> Tensor:
    """(B,) c / beta times the mean over directions of (beta Rc - pc)^2, or of the cross entropy of sigmoid(beta Rc) to sigmoid(pc).

    Args:
        reward: (B,) `implicit_reward` with gradient; Rc = R - its centre.
        p: (B,) given reward in [0, 1]; pc = p - its centre.
        centre: `centres` of the whole group of which the B samples are a micro-batch.
        clip: c, the scale of `nft.optimality`.

    Raises:
        ValueError: an unknown loss type.
    """
    of_reward, of_p = centre
    fitted, target = beta * (reward - of_reward[:, None]), p - of_p[:, None]
    if loss_type == "mse":
        loss = (fitted - target) ** 2
    elif loss_type == "bce":
        loss = binary_cross_entropy_with_logits(fitted, target.sigmoid().to(fitted.dtype).expand_as(fitted), reduction="none")
    else:
        raise ValueError(f"no CRD loss {loss_type!r}; known: mse, bce")
    return clip / beta * loss.mean(0)


def centres(reward: Tensor, p: Tensor, temperature: float, neutral: float = 0.5) -> tuple[Tensor, Tensor]:
    """Weighted means of R and of p, (K,) each, over one prompt's whole group (n,) by `centre_weights`; without gradient."""
    q = centre_weights(p, temperature, neutral)
    return (q * reward.detach()).sum(-1), (q * p).sum(-1)


def adaptive_kl_weight(p: Tensor, kl_beta: float, least: float = 1e-4) -> Tensor:
    """(B,) m + p (1 - m), m = least / kl_beta: the KL weight of a good sample is kl_beta, that of the worst is `least`."""
    m = least / kl_beta
    return m + p * (1 - m)
