"""DRaFT in runs of the real pipeline: what an epoch costs, its gradient against finite differences, and that it goes on exactly."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from flow_factory.training.reward_gradients import reward_gradient, score
from flow_factory.training.run import Run
from flow_factory.utils.errors import UserError
from tests.tiny.run import forwards, read_state, tiny, trained

BRIGHT = "rewards.reward_model=tests.tiny.rewards.Warm"
DRAFT = ("train.trainer_type=draft", "train.draft_steps=2", "train.num_inference_steps=4", "train.gradient_step_per_epoch=1", BRIGHT)
QUIET = ("eval.eval_freq=0", "train.ema_decay=0")


@pytest.mark.exhaustive
@pytest.mark.parametrize(("overrides", "points"), [
    ((), 8), (("train.kl_beta=0.1",), 16), (("train.stop_gradient=true",), 8), (("train.draft_steps=0",), 16),
    (("train.enable_gradient_checkpointing=true",), 8),
])  # fmt: skip
def test_an_epoch_costs_its_rollouts_and_its_points(tmp_path: Path, overrides: tuple[str, ...], points: int) -> None:
    """4 micro-batches of 4 steps; a forward a point, one more under the reference; once, `check_effect`. Decoding costs none."""
    run = tiny(tmp_path, *QUIET, *DRAFT, *overrides)
    for extra in (1, 0):
        with forwards(FluxTransformer2DModel) as seen:
            metrics = run.trainer.epoch()
        assert len(seen) == 4 * 4 + points + extra
        assert metrics["train/score"] == pytest.approx(metrics["train/reward_mean"], abs=2e-3)
        assert metrics["train/grad_norm"] > 0 and "train/zero_variance_share" not in metrics


def objective(run: Run, group: Any, members: list[int]) -> float:
    """The mean loss of samples that the present weights draw."""
    context = run.trainer.context
    with torch.no_grad():
        rollout = run.trainer.collector.sample(group, members, 0)
        pixels = context.adapter.decode(rollout.x0.float(), rollout.cond, context.call, rollout.memo)
        return float(-score(context.rewards, rollout.row.prompt, pixels).mean())


def moved(run: Run, way: Mapping[str, Tensor], length: float, ask: Callable[[], float]) -> float:
    """What is answered where the trained weights are moved that way."""
    params = run.trainer.context.policy.trained()
    with torch.no_grad():
        before = {name: params[name].clone() for name in way}
        for name, one in way.items():
            params[name].add_(length * one)
        found = ask()
        for name, value in before.items():
            params[name].copy_(value)
    return found


@pytest.mark.exhaustive
@pytest.mark.parametrize("overrides", [(), ("train.enable_gradient_checkpointing=true",)])
def test_the_gradient_is_that_of_finite_differences(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    """Of one LoRA weight through all steps, pipeline, VAE and reward; B is not 0, or A would have no gradient."""
    keys = ("train.draft_steps=0", "train.num_inference_steps=3", "train.unique_sample_num_per_epoch=1", "train.group_size=2")
    run = tiny(tmp_path, *QUIET, *DRAFT, *keys, *overrides)
    context = run.trainer.context
    params = context.policy.trained()
    with torch.no_grad():
        for k, p in enumerate(params.values()):
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(k)))
    group = run.trainer.collector.epoch_groups(0)[0]
    rollout = run.trainer.collector.sample(group, [0, 1], 0)
    rollout.advantage = torch.zeros(2)
    rollout.slope, _ = reward_gradient(context, rollout, rollout.cond)
    learner = run.trainer.learner
    for point in learner.points(rollout):
        loss, _ = context.algorithm.loss(point, learner.velocity)
        (loss / len(rollout.steps)).backward()
    gradients = {name: p.grad.clone() for name, p in params.items() if p.grad is not None}
    name = max(gradients, key=lambda name: float(gradients[name].abs().max()))
    place = int(gradients[name].abs().argmax())
    one = torch.zeros(gradients[name].numel()).index_fill(0, torch.tensor([place]), 1.0)
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    along = {n: gradient / norm for n, gradient in gradients.items()}
    for way, slope in (({name: one.view_as(gradients[name])}, gradients[name].flatten()[place]), (along, norm)):
        ahead, behind = (moved(run, way, h, lambda: objective(run, group, [0, 1])) for h in (0.05, -0.05))
        assert float(slope) == pytest.approx((ahead - behind) / 0.1, rel=2e-2)


@pytest.mark.exhaustive
def test_the_reward_rises_and_a_run_goes_on_to_the_bit(tmp_path: Path) -> None:
    keys = (*DRAFT, "log.save_freq=1", "log.save_model_only=false", "eval.eval_freq=0", "train.max_epochs=6", "train.kl_beta=0.01")
    keys = (*keys, "train.offload_samples_to_cpu=true", "train.learning_rate=1e-2")
    first = tiny(tmp_path, *keys)
    before = trained(first)
    scores = [first.trainer.epoch()["train/score"] for _ in range(6)]
    assert scores[-1] > scores[0] and not all(torch.equal(p, before[k]) for k, p in trained(first).items())
    tiny(tmp_path, *keys, "run_name=whole")()
    tiny(tmp_path, *keys, f"model.resume_path={tmp_path}/save/whole/checkpoints/epoch_4", "run_name=resumed")()
    whole, resumed = (read_state(tmp_path / "save" / run / "checkpoints" / "epoch_6") for run in ("whole", "resumed"))
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[k], resumed[k]) for k in whole)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("overrides", "says"), [
    (("train.true_cfg_scale=2.0",), "train.true_cfg_scale: is classifier-free guidance here"),
    (("rewards.reward_model=jpeg_compressibility",), "reward 'size': draft learns from the gradient of scores, .* the size of a file"),
])  # fmt: skip
def test_what_has_no_gradient_is_refused_before_anything_is_loaded(tmp_path: Path, overrides: tuple[str, ...], says: str) -> None:
    with pytest.raises(UserError, match=says):
        tiny(tmp_path, *DRAFT, *overrides)
