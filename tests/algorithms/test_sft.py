"""Supervised fine-tuning: densities, loss and gradient against the reference, and what it has in common with others."""

import pytest
import torch
from torch import Tensor

from flow_factory.algorithms.forward import mixed
from flow_factory.core.timesteps import logit_normal, uniform
from tests.points import given, latents, made, noised, rollout
from tests.vectors import close, golden, gradient, normals


@pytest.mark.parametrize("shift", [1, 3])
def test_noise_levels_have_the_references_densities(shift: int) -> None:
    """Whose mean above 0 is noisier, as here before the key's sign."""
    g = golden("22_sft")
    mean, std = float(g["logit_mean"]), float(g["logit_std"])
    close(logit_normal(torch.special.ndtr(g["z"]), (0.0, 1.0), shift, mean, std), g[f"logit_normal_shift{shift}"])
    close(uniform(g["u"], (0.0, 1.0), shift), g[f"uniform_shift{shift}"])


def test_the_loss_is_the_references() -> None:
    g = golden("22_sft")
    algorithm, v = made("sft", num_train_timesteps=2), g["v"].clone().requires_grad_()
    losses = []
    for k in range(len(v)):
        point = noised(g["x0"], g["noise"][k], g["sigma"][k], torch.ones(3), policy=v[k])
        close(point.x, g["x"][k])
        close(mixed(g["x0"], g["noise"][k], g["sigma"][k]), g["x"][k])
        loss, metrics = algorithm.loss(point, given)
        close(metrics["matching_error"].double(), g["per_sample"][k], 1e-6)
        losses.append(loss)
    total = torch.stack(losses).mean()
    close(total.double(), g["loss"], 1e-6)
    close(gradient(total, v), g["grad"], 1e-6)


def test_the_true_velocity_has_no_gradient() -> None:
    x0, noise = normals(2, 3, 4, 5).float()
    v = (noise - x0).requires_grad_()
    loss, _ = made("sft").loss(noised(x0, noise, torch.tensor([0.2, 0.5, 0.8]), torch.ones(3), policy=v), given)
    assert loss == 0 and not gradient(loss, v).any()


def test_it_is_awms_gradient_where_the_ratio_is_one_and_the_advantage_too() -> None:
    x0, noise, v = normals(3, 2, 4, 5).float()
    one, other = v.clone().requires_grad_(), v.clone().requires_grad_()
    s, advantage = torch.tensor([0.3, 0.6]), torch.ones(2)
    sft = made("sft").loss(noised(x0, noise, s, advantage, policy=one), given)[0]
    awm = made("awm", awm_weighting="Uniform", advantage_max=None)
    loss = awm.loss(noised(x0, noise, s, advantage, policy=other, old=v), given)[0]
    close(gradient(sft, one), gradient(loss, other), 1e-6)


def test_it_is_the_chosen_half_of_dpo() -> None:
    """d_w of the pair's margin, at the same noise and level."""
    x0, noise, v = normals(3, 2, 4, 5).float()
    s = torch.tensor([0.4, 0.4])
    dpo = made("dpo").loss(noised(x0, noise, s, torch.tensor([1.0, -1.0]), policy=v, ref=v), given)[1]
    sft = made("sft").loss(noised(x0[:1], noise[:1], s[:1], torch.ones(1), policy=v[:1]), given)[1]
    assert torch.equal(dpo["error_chosen"], sft["matching_error"])


def drawn(per_sample: bool = False, ids: tuple[int, ...] = (0, 1), group: int = 0, epoch: int = 0, **train: object) -> Tensor:
    algorithm = made("sft", per_sample, **{"num_train_timesteps": 4, **train})  # type: ignore[arg-type]
    asked = rollout(torch.ones(len(ids)), ids, group, epoch, latents(ids))
    return torch.stack([p.s for p in algorithm.points(asked)])


def test_levels_are_keyed_by_sample_and_epoch_one_in_each_part_of_the_density() -> None:
    shared = drawn()
    assert shared.shape == (4,) and torch.equal(shared, drawn(ids=(0, 7))) and not torch.equal(shared, drawn(epoch=1))
    own = drawn(True, (4, 5))
    assert own.shape == (4, 2) and torch.equal(own[:, 1], drawn(True, (5, 9))[:, 0])
    flat = torch.cat([drawn(True, tuple(range(100)), weighting_scheme="uniform", timestep_range=1.0)], 1)
    assert torch.equal((4 * flat).long().sort(0).values[:, 0], torch.arange(4)), "one in each quarter"
    assert drawn(True, (1,), timestep_range=[0.0, 0.5], weighting_scheme="uniform").min() >= 0.5


@pytest.mark.parametrize(("key", "value"), [("logit_mean", -1.0), ("time_shift", 3.0)])
def test_a_mean_below_0_and_a_shift_above_1_are_noisier(key: str, value: float) -> None:
    many = tuple(range(50))
    assert drawn(True, many, **{key: value}).mean() > drawn(True, many).mean() + 0.1
