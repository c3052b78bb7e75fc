"""Transition kernels x_s -> x_{s1} of flow matching: the distribution of the next latents, and their log-probability.

Convention: x_s = (1 - s) x0 + s e, v = dx/ds = e - x0; sampling takes s from 1 down to 0, so s1 < s. `x` and `v` are (B, ...); `s`, `s1`
and `ceiling` are 0-dim or (B, 1, ..., 1) (see `like`). Arithmetic is in the dtype of the inputs: cast to float32 first.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Transition = Callable[[Tensor, Tensor, Tensor, Tensor, float, Tensor], tuple[Tensor, Tensor]]


def per_sample(x: Tensor) -> Tensor:
    """(B, ...) -> (B,): mean over everything but the batch."""
    return x.flatten(1).mean(1)


def like(a: Tensor, x: Tensor) -> Tensor:
    """(B,) or 0-dim -> (B, 1, ..., 1) or (1, 1, ..., 1), to broadcast against x."""
    return a.reshape(-1, *[1] * (x.ndim - 1))


def ode(x: Tensor, v: Tensor, s: Tensor, s1: Tensor, eta: float, ceiling: Tensor) -> tuple[Tensor, Tensor]:
    """Euler: x + (s1 - s) v, std 0. Every kernel equals this at eta = 0."""
    return x + (s1 - s) * v, torch.zeros_like(s)


def reverse_sde(x: Tensor, v: Tensor, s: Tensor, s1: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Euler-Maruyama on the SDE of diffusion g that has the marginals of the flow (Flow-GRPO, arXiv 2505.05470)."""
    dt = s1 - s
    return x + (v + g**2 / (2 * s) * (x + (1 - s) * v)) * dt, g * (-dt).sqrt()


def flow_sde(x: Tensor, v: Tensor, s: Tensor, s1: Tensor, eta: float, ceiling: Tensor) -> tuple[Tensor, Tensor]:
    """Flow-GRPO: g = eta sqrt(s / (1 - min(s, ceiling))); `ceiling` is the schedule's second noise level."""
    return reverse_sde(x, v, s, s1, eta * (s / (1 - torch.minimum(s, ceiling))).sqrt())


def dance_sde(x: Tensor, v: Tensor, s: Tensor, s1: Tensor, eta: float, ceiling: Tensor) -> tuple[Tensor, Tensor]:
    """DanceGRPO (arXiv 2505.07818): g = eta at every noise level."""
    return reverse_sde(x, v, s, s1, torch.full_like(s, eta))


def flash_sde(x: Tensor, v: Tensor, s: Tensor, s1: Tensor, eta: float, ceiling: Tensor) -> tuple[Tensor, Tensor]:
    """Flash-GRPO (arXiv 2605.15980): g = eta s times the schedule's second noise level. It is 0 at the data, and finite at s = 1."""
    return reverse_sde(x, v, s, s1, eta * ceiling * s)


def cps(x: Tensor, v: Tensor, s: Tensor, s1: Tensor, eta: float, ceiling: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients-preserving sampling (Flow-CPS, arXiv 2509.05952): x_{s1} has exactly (1 - s1) of data and s1 of noise, fresh or kept."""
    data, noise = x - s * v, x + (1 - s) * v
    angle = eta * math.pi / 2
    return (1 - s1) * data + s1 * abs(math.cos(angle)) * noise, s1 * math.sin(angle)


def log_prob(x1: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(B,) Gaussian log-density of x1, normaliser included, averaged (not summed) over the D latent dimensions."""
    return per_sample(-((x1 - mean) ** 2) / (2 * std**2)) - std.log().flatten() - 0.5 * math.log(2 * math.pi)


def squared_log_prob(x1: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(B,) Flow-CPS's log-probability, without constants: -mean_d (x1 - mean)^2. Its scale, hence its clip range, is not `log_prob`'s."""
    return -per_sample((x1 - mean) ** 2)


def undefined_log_prob(x1: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """A deterministic step has no density. Masking a NaN afterwards would not help, because nan * 0 is nan."""
    raise ValueError("a deterministic (ODE) step has no log-probability: ask only at the stochastic steps")


def gaussian_precision(std: Tensor) -> Tensor:
    """1 / (2 std^2)."""
    return 0.5 / std**2


@dataclass(frozen=True)
class Kernel:
    """The interface of a kernel. A new kernel is a new entry of `DYNAMICS` and nothing else."""

    step: Transition
    """(x, v, s, s1, eta, ceiling) -> (mean, std) of x1 ~ N(mean, std^2); eta = 0 gives the ODE."""
    log_prob: Callable[[Tensor, Tensor, Tensor], Tensor] = log_prob
    """(x1, mean, std) -> (B,). Undefined where std is 0."""
    precision: Callable[[Tensor], Tensor] = gaussian_precision
    """std -> k of `log_prob` = -k mean_d (x1 - mean)^2 + const; so for x1 = mean_old + std e, and dmu = mean - mean_old,
    mean_d (e dmu) = (logp - logp_old + k mean_d dmu^2) / (2 k std): GRPO-Guard's ratio for any kernel."""
    stochastic: bool = True


DYNAMICS = {
    "Flow-SDE": Kernel(flow_sde),
    "Dance-SDE": Kernel(dance_sde),
    "Flash-SDE": Kernel(flash_sde),
    "CPS": Kernel(cps, log_prob=squared_log_prob, precision=torch.ones_like),
    "ODE": Kernel(ode, log_prob=undefined_log_prob, stochastic=False),
}


def slope(kernel: Kernel, s: Tensor, s1: Tensor, eta: float, ceiling: Tensor) -> Tensor:
    """d mean / d v of a transition, the shape of `s`; means are linear in v, and all dimensions have the same."""
    one = torch.ones_like(s)
    return kernel.step(torch.zeros_like(s), one, s, s1, eta, ceiling)[0]


def sample(
    kernel: Kernel,
    x: Tensor,
    v: Tensor,
    s: Tensor,
    s1: Tensor,
    eta: float,
    ceiling: Tensor,
    noise: Tensor,
    storage_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """One stochastic step, eta > 0: (x1 in `storage_dtype`, its (B,) log-probability, mean).

    x1 is rounded first, and the log-probability is that of the rounded value, which training replays. The other order
    would move the ratio by up to 5e-4 in bfloat16.
    """
    mean, std = kernel.step(x, v, s, s1, eta, ceiling)
    x1 = (mean + std * noise).to(storage_dtype)
    return x1, kernel.log_prob(x1.to(mean.dtype), mean, std), mean
