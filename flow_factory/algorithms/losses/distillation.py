"""On-policy distillation (DiffusionOPD, arXiv 2605.15055): a student is drawn to a teacher's velocity at states of its own path."""

from torch import Tensor

from flow_factory.core.dynamics import like, per_sample

LEAST = 1e-8
"""Added to the normaliser."""


def distillation_loss(
    v: Tensor, v_teacher: Tensor, factor: Tensor, std: Tensor | None = None, self_normalised: bool = False
) -> Tensor:  # fmt: skip
    """(B,) mean_d e^2 / std^2 / (sg mean_d |e| + 1e-8) with e = factor (v - v_teacher); the last two divisors where they are asked for.

    What is compared is linear in a velocity, and e is made of the difference of two: the difference of two next states would be rounded
    at the size of these.

    Args:
        v: (B, ...) float32, the student's; `v_teacher` without gradient.
        factor: d / d v of what is compared, 0-dim or (B,): d mean / d v of the next state ("xt"; of an Euler step s1 - s), 1 ("v"), or
            -s ("x0" = x - s v).
        std: of the next state, where it is drawn with noise; 0-dim or (B,).
        self_normalised: whether the gradient has the same size for large and small errors.
    """
    e = like(factor, v) * (v - v_teacher)
    loss = per_sample(e**2)
    if std is not None:
        loss = loss / std.flatten() ** 2
    return loss / (per_sample(e.abs()).detach() + LEAST) if self_normalised else loss
