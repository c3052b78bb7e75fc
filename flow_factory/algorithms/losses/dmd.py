"""Distribution matching (DMD2, arXiv 2405.14867; TDM, arXiv 2503.06674): a few-step student's clean state is pulled by two networks.

x0 = x - s v is what a velocity v makes of a state x at noise level s. The student's own x0 is pulled from what a network of the student's
pictures (fake) makes of a noised x0 towards what the base makes of it (real). Noise levels are 0-dim, (B,) or (B, 1, ..., 1).
"""

import math

from torch import Tensor

from flow_factory.core.dynamics import like, per_sample

LEAST = 1e-6
"""Below which a normaliser does not fall."""


def clean(x: Tensor, v: Tensor, s: Tensor) -> Tensor:
    """x0 = x - s v."""
    return x - like(s, x) * v


def normaliser(x0: Tensor, towards: Tensor) -> Tensor:
    """(B,) mean_d |x0 - towards|, without gradient."""
    return per_sample((x0 - towards).abs()).clamp(min=LEAST).detach()


def pulled(x0: Tensor, direction: Tensor) -> Tensor:
    """(B,) mean_d (x0 - sg(x0 + direction))^2 / 2: its value is that of direction^2 / 2, its gradient on x0 is -direction / D.

    A direction that is no number pulls nowhere.
    """
    return per_sample((x0 - (x0 + direction.nan_to_num()).detach()) ** 2) / 2


def huber_pulled(x0: Tensor, direction: Tensor, c: float = 1e-3) -> Tensor:
    """(B,) mean_d sqrt(e^2 + c^2) - c of that distance e: on x0 the gradient is -direction / sqrt(direction^2 + c^2) / D, about a sign."""
    e = x0 - (x0 + direction.nan_to_num()).detach()
    return per_sample((e**2 + c**2).sqrt() - c)


def dmd_loss(x0: Tensor, x0_real: Tensor, x0_fake: Tensor) -> Tensor:
    """(B,) DMD2's generator loss; the size of (x0_fake - x0_real) and of the normaliser together does not matter.

    Args:
        x0: the student's, with gradient.
        x0_real: of the base with guidance, at the noised x0; `x0_fake` of the fake network.
    """
    return pulled(x0, (x0_real - x0_fake) / like(normaliser(x0, x0_real), x0))


# -- TDM: the noised state keeps the path's own noise --------------------------------------------------------------------------------------


def renoising(s1: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
    """(alpha, beta) of x_tau = alpha x1 + beta noise, which has the marginal of noise level tau > s1 where x1 has that of s1 < 1."""
    alpha = (1 - tau) / (1 - s1)
    return alpha, (tau**2 - (alpha * s1) ** 2).clamp(min=0).sqrt()


def renoised(x1: Tensor, noise: Tensor, s1: Tensor, tau: Tensor) -> Tensor:
    """x_tau of a state x1 at noise level s1."""
    alpha, beta = renoising(s1, tau)
    return like(alpha, x1) * x1 + like(beta, x1) * noise


def noise_in(x_tau: Tensor, x0: Tensor, tau: Tensor) -> Tensor:
    """The noise that x_tau = (1 - tau) x0 + tau noise has in it."""
    return (x_tau - like(1 - tau, x0) * x0) / like(tau, x0)


def importance(noise: Tensor, mixed: Tensor, clip: float = 20.0) -> Tensor:
    """(B,) exp((mean_d noise^2 - mean_d mixed^2) / 2), kept within [1 / clip, clip]: how probable the noise in x_tau is as fresh noise."""
    return ((per_sample(noise**2) - per_sample(mixed**2)) / 2).clamp(-math.log(clip), math.log(clip)).exp()


def snr_weight(tau: Tensor, gamma: float = 5.0) -> Tensor:
    """min(((1 - tau) / tau)^2, gamma)."""
    return (((1 - tau) / tau) ** 2).clamp(max=gamma)


def tdm_fake_loss(v_fake: Tensor, x_tau: Tensor, x0: Tensor, noise: Tensor, tau: Tensor, gamma: float, clip: float) -> Tensor:
    """(B,) the fake network's loss: mean_d (x_tau - tau v_fake - x0)^2, weighed by `importance` and `snr_weight`.

    Args:
        noise: the fresh noise in x_tau.
        gamma: of `snr_weight`; `clip` of `importance`.
    """
    weight = importance(noise, noise_in(x_tau, x0, tau), clip) * snr_weight(tau, gamma).flatten()
    return weight.detach() * per_sample((clean(x_tau, v_fake, tau) - x0) ** 2)


def tdm_loss(x0: Tensor, x0_real: Tensor, x0_fake: Tensor, huber_c: float | None = 1e-3) -> Tensor:
    """(B,) TDM's generator loss, over the normaliser mean_d |x0 - x0_real|; without `huber_c` the square of the distance."""
    direction, size = x0_real - x0_fake, normaliser(x0, x0_real)
    return (pulled(x0, direction) if huber_c is None else huber_pulled(x0, direction, huber_c)) / size


# -- TDM-R1: a surrogate that has learnt the reward ----------------------------------------------------------------------------------------


def path_velocity(x1: Tensor, noise: Tensor, s1: Tensor, tau: Tensor) -> Tensor:
    """d x_tau / d tau of `renoised`: what a network of the pictures of x1 is to have at x_tau."""
    alpha, beta = renoising(s1, tau)
    return -x1 / like(1 - s1, x1) + noise * like((tau + s1**2 * alpha / (1 - s1)) / beta, x1)


def rewarded_loss(x0: Tensor, pull: Tensor, cfg: Tensor, reward: Tensor, sizes: tuple[Tensor, Tensor], weight: float) -> Tensor:
    """(B,) TDM-R1's generator loss (arXiv 2603.07700): the anchor, and in the shares w and 1 - w guidance and the learned reward.

    Args:
        x0: the student's, with gradient.
        pull: x0_base - x0_fake, both without guidance.
        cfg: the scaled difference that a prompt makes to the base's x0.
        reward: x0 of the guided surrogate less the base's; 0 where it does not count.
        sizes: normalisers, of the first two and of the last.
        weight: w.
    """
    first, last = sizes
    return (pulled(x0, pull) + weight * pulled(x0, cfg)) / first + (1 - weight) * pulled(x0, reward) / last
