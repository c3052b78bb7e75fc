"""Scores with gradient are the scores of the same pictures, and their gradient is that of finite differences."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from flow_factory.rewards import pixels as torch_pixels
from flow_factory.rewards.media import cropped
from flow_factory.types import Row
from flow_factory.utils.errors import UserError
from tests.rewards.reward_set import pictures, rewards

NAMES = ("CLIP", "PickScore", "HPSv2", "aesthetic", "ImageReward")
SIZES = ((32, 32), (48, 40), (37, 64))


def tensors(images: list[Image.Image]) -> Tensor:
    return torch.stack([torch.from_numpy(np.array(i.convert("RGB"))).permute(2, 0, 1) for i in images]).float() / 255


def smooth(size: tuple[int, int], count: int = 3) -> list[Image.Image]:
    return [Image.fromarray(np.asarray(i.resize((6, 6)))).resize(size, Image.Resampling.BICUBIC) for i in pictures(count)]


@pytest.mark.exhaustive
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_scores_with_gradient_are_those_of_the_pictures(keys: Any, name: str, size: tuple[int, int]) -> None:
    images, prompts = smooth(size), ["a red circle", "two dogs on a hill", "a red circle"]
    given = rewards(name, **keys(name))
    model = given.rewards[0].model
    theirs = torch.cat([given.score([Row(k, p)], [[i]])[0][:, 0] for k, (p, i) in enumerate(zip(prompts, images, strict=True))])
    x = tensors(images).requires_grad_()
    mine = model.differentiable(prompts, x)
    spread = float(theirs.std()) if name == "aesthetic" else max(float(theirs.std()), 0.05)
    torch.testing.assert_close(mine.detach(), theirs, atol=0.05 * spread, rtol=0)
    (slope,) = torch.autograd.grad(mine.sum(), x)
    assert slope.isfinite().all() and all(one.any() for one in slope)
    way = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)) * slope.abs().mean() / slope.abs().max()
    with torch.no_grad():
        ahead, behind = (model.differentiable(prompts, (x + h * way).clamp(0, 1)).double().sum() for h in (1e-2, -1e-2))
    inside = ((x + 1e-2 * way).clamp(0, 1) - (x - 1e-2 * way).clamp(0, 1)).detach()
    assert float(ahead - behind) == pytest.approx(float((slope * inside).sum()), rel=0.1, abs=1e-5)


@pytest.mark.parametrize(("size", "side"), [((48, 40), 32), ((64, 24), 32), ((20, 30), 24)])
def test_the_square_that_is_seen_is_pils(size: tuple[int, int], side: int) -> None:
    image = smooth(size, 1)[0]
    theirs, mine = tensors([cropped(image, side)]), torch_pixels.cropped(tensors([image]), side)
    assert mine.shape == theirs.shape and (mine - theirs).abs().max() < 2 / 255


def test_black_bars_are_where_pil_has_them() -> None:
    from PIL import ImageOps

    for size in ((48, 40), (25, 64)):
        image = smooth(size, 1)[0]
        theirs = tensors([ImageOps.pad(image, (32, 32), Image.Resampling.BICUBIC, color="black")])
        assert (torch_pixels.padded(tensors([image]), 32) - theirs).abs().max() < 2 / 255


def test_what_is_enough_of_a_colour_is_paid_for_once() -> None:
    """A named colour is worth what it fills, and one that is not named takes as much; nothing is gained by more than enough."""
    white = np.full((3, 64, 64, 3), 242, np.uint8)
    for k, side in enumerate((0, 16, 24)):  # 0, 6 and 14 % of the picture
        white[k, :side, :side] = (222, 45, 45)
    images, gains = [Image.fromarray(array) for array in white], []
    for enough in (0.06, 0.01):
        model = rewards("shape_colors", enough=enough).rewards[0].model
        named, other = (model.differentiable([prompt] * 3, tensors(images)) for prompt in ("a red square", "a blue square"))
        assert torch.allclose(model(["a red square"] * 3, images).rewards, named) and min(named[1:]) > 0.6 > -0.6 > max(other[1:])
        gains.append((named[2] - named[1]) / (named[1] - named[0]))
    assert gains[0] > 0.3 and gains[1] < 0.01
    with pytest.raises(UserError, match=r"enough: wants a number of at least 0.001, got 0"):
        rewards("shape_colors", enough=0)
