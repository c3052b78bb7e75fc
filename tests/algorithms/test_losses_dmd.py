"""DMD2, TDM and TDM-R1: values and gradients against the references, and what must hold where the networks agree."""

import math

import torch
from torch import Tensor

from flow_factory.algorithms.losses import kl_v, matching_error
from flow_factory.algorithms.losses.dgpo import dgpo_loss, group_weight, out_of_range, stopped
from flow_factory.algorithms.losses.dmd import (
    clean,
    dmd_loss,
    importance,
    noise_in,
    normaliser,
    path_velocity,
    pulled,
    renoised,
    renoising,
    rewarded_loss,
    snr_weight,
    tdm_fake_loss,
    tdm_loss,
)  # fmt: skip
from flow_factory.core.dynamics import like
from flow_factory.core.timesteps import between
from tests.vectors import close, golden, gradient, normals


def path(g: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(v with gradient, x0, the noise level of each sample's step, that of the next)."""
    v, s, s1 = g["v_gen"].clone().requires_grad_(), g["sigmas"][g["step"]], g["sigmas"][g["step"] + 1]
    return v, clean(g["x"], v, s), s, s1


def test_dmd2_is_the_references() -> None:
    g = golden("24_dmd_tdm")
    v, x0, _, _ = path(g)
    close(x0, g["x0_gen"])
    tau = g["tau"]
    guided = g["v_uncond"] + g["real_guidance"] * (g["v_cond"] - g["v_uncond"])
    real, fake = clean(g["x_tau"], guided, tau), clean(g["x_tau"], g["v_fake"], tau)
    close(normaliser(x0, real), g["dmd_normaliser"])
    loss = dmd_loss(x0, real, fake)
    close(loss, g["dmd_per_sample"])
    close(loss.mean(), g["dmd_loss"])
    close(gradient(dmd_loss(x0, real, fake).mean(), x0), g["dmd_grad_x0"])
    close(gradient(loss.mean(), v), g["dmd_grad_v"])


def test_the_fake_network_matches_the_flow_of_the_students_pictures() -> None:
    g = golden("24_dmd_tdm")
    v = g["v_fake"].clone().requires_grad_()
    loss = matching_error(v, g["x0_gen"], g["noise"]).mean()
    close(loss, g["fake_loss"])
    close(gradient(loss, v), g["fake_grad"])


def test_tdm_keeps_the_noise_of_the_path() -> None:
    g = golden("24_dmd_tdm")
    v, x0, s, s1 = path(g)
    tau, x1 = g["tdm_tau"], g["x"] + like(s1 - s, v) * v
    alpha, beta = renoising(s1, tau)
    close(alpha, g["tdm_alpha"])
    close(beta, g["tdm_beta"])
    x_tau = renoised(x1, g["tdm_fresh"], s1, tau)
    close(x_tau, g["tdm_x_tau"])
    close(noise_in(x_tau, x0, tau), g["tdm_mixed"])
    close(noise_in(x_tau, x0, tau), (like(alpha * s1, x0) * (x0 + v) + like(beta, x0) * g["tdm_fresh"]) / like(tau, x0))
    close(importance(g["tdm_fresh"], noise_in(x_tau, x0, tau)), g["tdm_importance"])
    close(snr_weight(tau), g["tdm_snr"])


def test_tdm_is_the_references() -> None:
    g = golden("24_dmd_tdm")
    v, x0, _, _ = path(g)
    tau, x_tau = g["tdm_tau"], g["tdm_x_tau"]
    v_fake = g["tdm_v_fake"].clone().requires_grad_()
    loss = tdm_fake_loss(v_fake, x_tau, x0.detach(), g["tdm_fresh"], tau, 5.0, 20.0).mean()
    close(loss, g["tdm_fake_loss"])
    close(gradient(loss, v_fake), g["tdm_fake_grad"])
    guided = g["tdm_v_uncond"] + g["real_guidance"] * (g["tdm_v_cond"] - g["tdm_v_uncond"])
    real, fake = clean(x_tau, guided, tau), clean(x_tau, g["tdm_v_fake"], tau)
    for name, c in (("mse", None), ("huber", 1e-3)):
        loss = tdm_loss(x0, real, fake, c).mean()
        close(loss, g[f"tdm_{name}_loss"])
        close(torch.autograd.grad(loss, v, retain_graph=True)[0], g[f"tdm_{name}_grad"])


def test_the_rewarded_generator_is_the_references() -> None:
    g = golden("24_dmd_tdm")
    v, x0, _, _ = path(g)
    tau, x_tau = g["tdm_tau"], g["tdm_x_tau"]
    names = ("tdm_v_cond", "tdm_v_uncond", "tdm_v_fake", "r1_v_surrogate", "r1_v_reference")
    cond, uncond, fake, surrogate, base = (clean(x_tau, g[name], tau) for name in names)
    sizes = normaliser(x0, uncond + g["real_guidance"] * (cond - uncond)), normaliser(x0, surrogate)
    cfg = g["r1_cfg_scale"] * (cond - uncond)
    close((pulled(x0, cond - fake) / sizes[0]).mean(), g["r1_loss_kl"])
    close((pulled(x0, cfg) / sizes[0]).mean(), g["r1_loss_cfg"])
    close((pulled(x0, surrogate - base) / sizes[1]).mean(), g["r1_loss_surrogate"])
    loss = rewarded_loss(x0, cond - fake, cfg, surrogate - base, sizes, float(g["r1_weight"])).mean()
    close(loss, g["r1_loss"])
    close(gradient(loss, v), g["r1_grad"])


def test_the_surrogate_is_dgpos_on_a_state_of_the_path() -> None:
    g = golden("24_dmd_tdm")
    index, tau = int(g["sur_index"]), g["sur_tau"]
    s1 = g["sigmas"][index + 1]
    close(renoised(g["sur_boundary"], g["sur_noise"], s1, tau), g["sur_x"])
    target = path_velocity(g["sur_boundary"], g["sur_noise"], s1, tau)
    close(target, g["sur_target"])
    v, advantage = g["sur_v"].clone().requires_grad_(), g["sur_advantages"].clamp(-5, 5)
    d, d_ref, d_slow = (kl_v(u, target) for u in (v, g["sur_v_ref"], g["sur_v_slow"]))
    close(d, g["sur_error"])
    weight = group_weight(advantage, d, d_ref, 10.0)
    close(weight, g["sur_weight"])
    far, _ = out_of_range(advantage, d, d_slow, (-1e-3, 1e-3))
    assert torch.equal(far, g["sur_stopped"].bool())
    loss = (dgpo_loss(weight, advantage, stopped(d, far)) + 1e-3 * kl_v(v, g["sur_v_ref"])).mean() * (index + 1) / 4
    close(loss, g["sur_loss"])
    close(gradient(loss, v), g["sur_grad"])


def test_noise_levels_that_scores_are_asked_at_are_the_references() -> None:
    g = golden("24_dmd_tdm")
    low, high, u = g["sigmas"][1:, None], g["sigmas"][:-1, None], g["query_r"]
    names = {"uniform": "actual_uniform", "source": "source_uniform", "logit": "conditional_logit_normal"}
    for interval, top in (("trajectory", high), ("reverse", torch.ones_like(high))):
        for name, density in names.items():
            close(between(u, low, top, density, 3.0), g[f"query_{interval}_{name}"])  # type: ignore[arg-type]
    close(between(u, low, torch.ones_like(high), "source_uniform", 3.0, margin=0.02), g["query_author"])


# -- what must hold ---------------------------------------------------------------------------------------------------------------------


def test_where_fake_and_real_agree_nothing_is_pulled() -> None:
    x, v, x_tau, u = normals(4, 3, 2, 5)
    v.requires_grad_()
    x0, real = clean(x, v, torch.tensor(0.7)), clean(x_tau, u, torch.tensor(0.4))
    for loss in (dmd_loss(x0, real, real), tdm_loss(x0, real, real), tdm_loss(x0, real, real, None)):
        assert not torch.autograd.grad(loss.sum(), v, retain_graph=True)[0].any()


def test_a_common_factor_of_distance_and_normaliser_changes_nothing() -> None:
    x0, real, fake = normals(3, 4, 6)
    near, far = (dmd_loss(x0, x0 + k * (real - x0), x0 + k * (fake - x0)) for k in (1.0, 7.0))
    close(near, far)


def test_a_direction_that_is_no_number_pulls_nowhere() -> None:
    x0 = normals(2, 3).requires_grad_()
    direction = torch.tensor([[math.nan, 1.0, 0.0]], dtype=torch.float64)
    assert gradient(pulled(x0, direction).sum(), x0).tolist() == [[0.0, -1 / 3, 0.0]] * 2


def test_at_the_last_step_tdm_noises_as_dmd2_does() -> None:
    x0, noise = normals(2, 4, 6)
    s1, tau = torch.zeros((), dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
    x_tau = renoised(x0, noise, s1, tau)
    close(x_tau, 0.7 * x0 + 0.3 * noise)
    close(noise_in(x_tau, x0, tau), noise)
    close(importance(noise, noise_in(x_tau, x0, tau)), torch.ones(4, dtype=torch.float64))
    close(path_velocity(x0, noise, s1, tau), noise - x0)


def test_the_surrogates_target_is_the_slope_of_its_path() -> None:
    x1, noise = normals(2, 4, 6)
    s1, tau, h = (torch.tensor(k, dtype=torch.float64) for k in (0.5, 0.7, 1e-6))
    slope = (renoised(x1, noise, s1, tau + h) - renoised(x1, noise, s1, tau - h)) / (2 * h)
    close(path_velocity(x1, noise, s1, tau), slope, 1e-7)


def test_with_all_weight_on_guidance_the_learned_reward_counts_nothing() -> None:
    x0, pull, cfg, reward = normals(4, 3, 6)
    size = torch.ones(3, dtype=torch.float64)
    close(rewarded_loss(x0, pull, cfg, reward, (size, size), 1.0), pulled(x0, pull) + pulled(x0, cfg))
