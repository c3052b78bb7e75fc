"""GenEval: what is asked for against what a detector and CLIP say is there."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from transformers import Mask2FormerForUniversalSegmentation

from flow_factory.hparams import RewardArguments
from flow_factory.rewards.clip import CLIPScorer
from flow_factory.rewards.gen_eval import COLORS, Detection, GenEvalReward, found_in, where
from flow_factory.rewards.media import normalised
from flow_factory.rewards.needs import needs_of
from flow_factory.types import Clip, Row
from flow_factory.utils.errors import UserError
from tests.rewards.reward_set import pictures, rewards

Keys = Callable[[str], dict[str, Any]]


def thing(x: float, y: float, size: float = 10, score: float = 0.95) -> Detection:
    half = size / 2
    mask = np.zeros((100, 100), bool)
    mask[int(y - half) : int(y + half), int(x - half) : int(x + half)] = True
    return Detection((x - half, y - half, x + half, y + half), mask, score)


DOG, CAT = thing(20, 50), thing(80, 50)


@pytest.mark.parametrize(("x", "y", "sides"), [
    (80, 50, {"right of"}), (20, 50, {"left of"}), (50, 20, {"above"}), (50, 80, {"below"}), (80, 80, {"right of", "below"}),
    (51, 50, set()), (52, 51, set()), (80, 60, {"right of"}),
])  # fmt: skip
def test_where_one_lies_of_another(x: float, y: float, sides: set[str]) -> None:
    assert where(thing(x, y), thing(50, 50)) == sides


def asked(name: str, count: int = 1, **more: Any) -> dict[str, Any]:
    return {"class": name, "count": count, **more}


RED, BLUE = asked("dog", color="red"), asked("cat", color="blue")
SCENES: list[tuple[dict[str, list[Detection]], dict[str, Any], float, float]] = [
    ({"dog": [DOG]}, {"include": [asked("dog")]}, 1, 1),
    ({}, {"include": [asked("dog")]}, 0, 0),
    ({"dog": [DOG, CAT]}, {"include": [asked("dog")]}, 1, 1),  # more than asked is right where nothing is excluded
    ({"dog": [DOG]}, {"include": [asked("dog"), {"class": "cat", "count": 1}]}, 0, 0.5),
    ({"dog": [DOG], "cat": [CAT]}, {"include": [asked("dog"), {"class": "cat", "count": 1}]}, 1, 1),
    ({"mouse": [DOG]}, {"include": [{"class": "computer mouse", "count": 1}]}, 1, 1),
    ({"dog": [DOG] * 2}, {"include": [{"class": "dog", "count": 2}], "exclude": [{"class": "dog", "count": 3}], "tag": "counting"}, 1, 1),
    ({"dog": [DOG] * 3}, {"include": [{"class": "dog", "count": 2}], "exclude": [{"class": "dog", "count": 3}], "tag": "counting"}, 0, 0.5),
    ({"dog": [DOG, thing(9, 9, 8, 0.8)]}, {"include": [{"class": "dog", "count": 2}], "tag": "counting"}, 0, 0.5),  # one is not sure enough
    ({"dog": [DOG, thing(9, 9, 8, 0.8)]}, {"include": [{"class": "dog", "count": 2}]}, 1, 1),
    ({"dog": [DOG, thing(9, 9, 8, 0.2)]}, {"include": [{"class": "dog", "count": 2}]}, 0, 0.5),
    ({"dog": [DOG]}, {"include": [{"class": "dog", "count": 1, "color": "red"}]}, 1, 1),
    ({"dog": [CAT]}, {"include": [{"class": "dog", "count": 1, "color": "red"}]}, 0, 0.5),  # it is blue there
    ({"dog": [DOG, CAT]}, {"include": [{"class": "dog", "count": 2, "color": "red"}]}, 0, 0.75),
    ({"dog": [DOG], "cat": [CAT]}, {"include": [RED, BLUE]}, 1, 1),
    ({"dog": [CAT], "cat": [DOG]}, {"include": [RED, BLUE]}, 0, 0.5),
    ({"dog": [DOG], "cat": [CAT]}, {"include": [asked("dog"), asked("cat", position=["right of", 0])]}, 1, 1),
    ({"dog": [DOG], "cat": [CAT]}, {"include": [asked("dog"), asked("cat", position=["above", 0])]}, 0, 2 / 3),
    ({"cat": [CAT]}, {"include": [asked("dog"), asked("cat", position=["right of", 0])]}, 0, 1 / 3),
]  # fmt: skip


@pytest.fixture(scope="module")
def loaded(keys: Keys) -> GenEvalReward:
    model = rewards("GenEval", **keys("GenEval")).rewards[0].model
    assert isinstance(model, GenEvalReward)
    return model


@pytest.mark.parametrize("scene", range(len(SCENES)))
def test_a_scene_is_judged_as_geneval_does(loaded: GenEvalReward, monkeypatch: pytest.MonkeyPatch, scene: int) -> None:
    there, columns, strict, partial = SCENES[scene]
    colors = lambda self, image, things, name: ["red" if t.box[0] < 50 else "blue" for t in things]  # noqa: E731
    monkeypatch.setattr(GenEvalReward, "detect", lambda self, image: there)
    monkeypatch.setattr(GenEvalReward, "colors", colors)
    given = columns["include"], columns.get("exclude", []), columns.get("tag")
    assert loaded.judge(Image.new("RGB", (100, 100)), *given) == pytest.approx((strict, partial))


def test_partial_is_a_key_and_rows_are_those_of_geneval(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GenEvalReward, "detect", lambda self, image: SCENES[7][0])
    row = Row(0, "a photo", columns=SCENES[7][1])
    for wanted, extra in ((0, {}), (0.5, {"partial": True})):
        reward = rewards("GenEval", **extra, **keys("GenEval"))
        reward.check_columns([row])
        assert reward.score([row], [[Image.new("RGB", (100, 100))]])[0].item() == wanted


def test_a_video_is_the_mean_of_its_frames(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GenEvalReward, "detect", lambda self, image: {"dog": [DOG]} if image.getpixel((0, 0))[0] else {})
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "black", "red")]
    row = Row(0, "a", columns={"include": [asked("dog")]})
    assert rewards("GenEval", **keys("GenEval")).score([row], [[Clip(frames, 8.0)]])[0].item() == pytest.approx(2 / 3)


def test_detections_are_classes_times_masks() -> None:
    masks = torch.full((3, 8, 16), -4.0)
    masks[0, 2:6, 4:8], masks[1, 0:8, 8:16] = 4.0, 2.0  # the third query has an empty mask
    classes = torch.tensor([[4.0, 0, 0], [0, 2.0, 2.0], [5.0, 0, 0]])
    found = found_in(classes, masks, ["dog", "potted-plant"], 32, 16)
    assert list(found) == ["dog", "potted plant"] and len(found["dog"]) == 1
    (dog,), (plant,) = found["dog"], found["potted plant"]
    assert dog.box == pytest.approx((8, 4, 16, 12), abs=1) and plant.box == pytest.approx((16, 0, 32, 16), abs=1)
    sure = math.exp(4) / (math.exp(4) + 2)
    assert sure * 0.8 < dog.score < sure and dog.mask.shape == (16, 32)
    likely = math.exp(2) / (2 * math.exp(2) + 1)
    assert likely * 0.75 < plant.score < likely / (1 + math.exp(-2)) + 1e-6


@pytest.mark.exhaustive
def test_the_detector_sees_what_transformers_would(keys: Keys, loaded: GenEvalReward) -> None:
    """A picture whose sides need no padding: the same logits as of the model called by hand."""
    image = pictures(1)[0].resize((64, 64), 0)
    model = Mask2FormerForUniversalSegmentation.from_pretrained(keys("GenEval")["detector_name_or_path"]).eval()
    pixels = normalised(image.resize((800, 800), Image.Resampling.BILINEAR), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with torch.no_grad():
        output = model(pixel_values=pixels[None])
    large = torch.nn.functional.interpolate(output.masks_queries_logits, size=(800, 800), mode="bilinear", align_corners=False)[0]
    expected = found_in(output.class_queries_logits[0], large, ["dog", "cat"], 64, 64)
    found = loaded.detect(image)
    assert found and {name: [t.box for t in ts] for name, ts in found.items()} == {
        name: [t.box for t in ts] for name, ts in expected.items()
    }


def test_colors_are_the_nearest_of_three_phrases(loaded: GenEvalReward) -> None:
    image = Image.new("RGB", (100, 100), "green")
    ImageDraw.Draw(image).rectangle((70, 40, 90, 60), fill="red")
    clip: CLIPScorer = loaded.clip
    cut = Image.new("RGB", (20, 20), "red")
    cut.paste((153, 153, 153), (0, 0, 5, 20))
    round_ = thing(80, 50, 20)
    round_.mask[:, 70:75] = False
    vectors = torch.stack([
        torch.stack([clip.texts([f"a photo of a {c} dog"])[0], clip.texts([f"a photo of a {c}-colored dog"])[0],
                     clip.texts([f"a photo of a {c} object"])[0]]).mean(0) for c in COLORS
    ])  # fmt: skip
    likely = (clip.pictures([cut]) @ (vectors / vectors.norm(dim=-1, keepdim=True)).T)[0]
    assert loaded.colors(image, [round_], "dog") == [COLORS[int(likely.argmax())]] and loaded.colors(image, [], "dog") == []


@pytest.mark.parametrize(("columns", "said"), [
    ({"include": []}, "include: is empty"), ({"include": "dog"}, "include: wants a list of mappings with class and count"),
    ({"include": [{"count": 1}]}, "include: wants a list of mappings"),
    ({"include": [{"class": "dog"}]}, "include: 'dog' has the count None"),
    ({"include": [{"class": "dog", "count": 0}]}, "include: 'dog' has the count 0; write a number of at least 1"),
    ({"include": [{"class": "dog", "count": 1, "color": "mauve"}]}, "include: 'dog' has the color 'mauve'; GenEval knows red, orange"),
    ({"include": [{"class": "dog", "count": 1, "position": ["above", 0]}]}, "include: 'dog' has the position .*an earlier object"),
    ({"include": [asked("dog")], "exclude": [{"class": "dog"}]}, "exclude: 'dog' has the count None"),
])  # fmt: skip
def test_rows_that_geneval_cannot_judge_are_refused(columns: dict[str, Any], said: str) -> None:
    config = RewardArguments(name="it", reward_model="GenEval")
    with pytest.raises(UserError, match=f"reward 'it': row 3 .*: {said}"):
        needs_of("it", GenEvalReward, config).require_columns(Row(3, "a", columns=columns))
