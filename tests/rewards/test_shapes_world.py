"""The reward of the world of shapes, against the renders of that world's own tool."""

import importlib
import importlib.util
import random
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor

from flow_factory.rewards.shapes_detector import BACKGROUND, PALETTE, detect, nearest_color
from flow_factory.types import Row
from tests.conftest import ROOT
from tests.rewards.reward_set import rewards, scores


@pytest.fixture(scope="session")
def world() -> ModuleType:
    """tools/shapes_world.py, which is not a package."""
    spec = importlib.util.spec_from_file_location("shapes_world", ROOT / "tools" / "shapes_world.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shapes(world: ModuleType, strict: bool, noise: float, per_caption: int) -> Tensor:
    """Scores of every third caption's renders."""
    rng = random.Random(0)
    captions = world.captions()[::3]
    rows = [Row(k, c["prompt"], columns={"objects": c["objects"], "relation": c["relation"]}) for k, c in enumerate(captions)]
    media = [[Image.fromarray(world.render(c, rng, noise)) for _ in range(per_caption)] for c in captions]
    reward = rewards("shapes", batch_size=64, strict=strict)
    reward.check_columns(rows)
    return torch.cat(reward.score(rows, media))[:, 0]


def test_clean_renders_of_the_shapes_world_score_one(world: ModuleType) -> None:
    found = shapes(world, strict=True, noise=0.0, per_caption=7)
    assert len(found) >= 1500
    assert found.mean() >= 0.99


def test_renders_that_contradict_their_caption_score_low(world: ModuleType) -> None:
    strict, soft = (shapes(world, strict, noise=1.0, per_caption=2) for strict in (True, False))
    assert strict.mean() < 0.12  # a relation dropped at random holds now and then
    assert torch.equal(strict == 1, soft == 1)
    assert soft[strict == 0].max() <= 0.7
    assert 0.3 < soft[strict == 0].mean() < 0.7, "partial credit"


def test_a_pixel_that_a_shape_covers_in_part_has_its_color() -> None:
    """From the least share that votes on: pure orange is nearer than pure red to a pixel that red covers by 54 to 74 %."""
    for k, color in enumerate(np.array(list(PALETTE.values()), np.float64)):
        away = color - BACKGROUND
        share = np.linspace(150 / np.linalg.norm(away), 1, 50) if np.linalg.norm(away) > 150 else np.ones(1)
        pixels = (BACKGROUND + share[:, None] * away).round().astype(np.uint8)
        assert nearest_color(pixels).tolist() == [k] * len(pixels)


def test_a_triangle_with_soft_edges_is_as_red_as_a_sharp_one() -> None:
    """Smaller and softer than those of the renderer: most of its pixels are edges."""
    for size, blur in ((9, 0.6), (12, 0.8), (16, 1.0)):
        image = Image.new("RGB", (64, 64), BACKGROUND)
        ImageDraw.Draw(image).polygon([(32, 32 - size / 2), (32 - size / 2, 32 + size / 2), (32 + size / 2, 32 + size / 2)], PALETTE["red"])
        ((found,),) = detect(np.asarray(image.filter(ImageFilter.GaussianBlur(blur)))[None])
        assert (found.color, found.shape) == ("red", "triangle")


def test_a_mixture_of_two_colors_is_neither() -> None:
    for one, other in (("red", "yellow"), ("red", "blue"), ("green", "blue")):
        mixed = (np.add(PALETTE[one], PALETTE[other]) // 2).astype(np.uint8)
        assert list(PALETTE)[nearest_color(mixed[None])[0]] not in (one, other)


def test_relation_is_optional_and_objects_are_required(world: ModuleType) -> None:
    caption = next(c for c in world.captions() if c["kind"] == "count")
    image = Image.fromarray(world.render(caption, random.Random(0)))
    reward = rewards("shapes")
    assert scores(reward, [image], objects=caption["objects"]).tolist() == [1.0]
    rows = [Row(0, "a", columns={"objects": []}), Row(1, "two cats", columns={"object": []})]
    with pytest.raises(ValueError, match="reward 'it' needs the column 'objects', and row 1 .*two cats.* Did you mean 'object'?"):
        reward.check_columns(rows)
