"""The gradient of the rewards in the final states, for algorithms that learn through the sampler."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flow_factory.rewards.scoring import RewardSet
from flow_factory.types import Cond, Metrics, Rollout
from flow_factory.utils.offload import to_device

if TYPE_CHECKING:
    from flow_factory.training.context import TrainingContext


def score(rewards: RewardSet, prompt: str, pixels: Tensor) -> Tensor:
    """(n,) weighted sum of the rewards of images (n, 3, h, w); for videos (n, frames, 3, h, w) the mean over frames. Differentiable."""
    frames = pixels if pixels.ndim == 4 else pixels.flatten(0, 1)
    texts = [prompt] * len(frames)
    used = [(reward.model, weight) for reward, weight in zip(rewards.rewards, rewards.weights, strict=True) if weight != 0]
    scores = [weight * model.differentiable(texts, frames).to(frames.device) for model, weight in used]
    return torch.stack(scores).sum(0).reshape(len(pixels), -1).mean(1)


def reward_gradient(context: "TrainingContext", rollout: Rollout, cond: Cond) -> tuple[Tensor, Metrics]:
    """(gradient of each sample's loss in its final state, (n, ...) float32; metrics), in one pass through the VAE and the rewards.

    Args:
        cond: the condition of the rollout, on the device.
    """
    assert rollout.x0 is not None  # an ODE rollout stores them
    x = to_device(rollout.x0, context.accelerator.device).float().detach().requires_grad_()
    with torch.enable_grad():
        pixels = context.adapter.decode(x, cond, context.call, rollout.memo)
        scores = score(context.rewards.of(rollout.row.dataset), rollout.row.prompt, pixels.float())
        (slope,) = torch.autograd.grad(context.algorithm.objective(scores).sum(), x)
    context.policy.offload_idle()
    return slope, {"score": scores.detach()}
