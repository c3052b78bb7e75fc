"""Text that a prompt asks for, read in pictures: boxes, lines, letters, and how near they are to the target."""

import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from transformers import (
    AutoBackbone,
    AutoConfig,
    PPOCRV5ServerRecForTextRecognition,
    PPOCRV6SmallDetConfig,
    PPOCRV6SmallDetForObjectDetection,
    PPOCRV6SmallRecConfig,
    PPOCRV6SmallRecForTextRecognition,
)

from flow_factory.hparams import RewardArguments
from flow_factory.rewards.loading import require_files
from flow_factory.rewards.ocr import OCRReward, contains, distance, edit, targets, words
from flow_factory.rewards.text_reader import Box, boxes_in, cut, decoded, detector_input, recogniser_input
from flow_factory.types import Clip, Row
from flow_factory.utils.errors import UserError
from tests.rewards.reward_set import pictures, rewards

Keys = Callable[[str], dict[str, Any]]


@pytest.mark.parametrize(("target", "read", "scores"), [  # edit, contains, words
    ("Hello World", "hello world", (1, 1, 1)), ("Hello World", "HELLO   WORLDS!", (1, 1, 0.5)),
    ("Hello World", "helo world", (0.9, 0, 0.5)),
    ("STOP", "", (0, 0, 0)), ("STOP", "xxxxxxxxxxxx", (0, 0, 0)), ("STOP", "st0p", (0.75, 0, 0)), ("a b a", "a b", (2 / 3, 0, 2 / 3)),
    ("\u4f60\u597d", "\u4f60\u597d\uff01", (1, 1, 0)), ("\uff21\uff22", "ab", (1, 1, 1)),
    ("\u041c\u0438\u0440", "\u043c\u0438\u0440", (1, 1, 1)),
])  # fmt: skip
def test_the_metrics(target: str, read: str, scores: tuple[float, ...]) -> None:
    assert [metric(target, read) for metric in (edit, contains, words)] == pytest.approx(scores)


@given(st.text("ab c", max_size=6), st.text("ab c", max_size=6))
@settings(max_examples=25, deadline=None, database=None, derandomize=True)
def test_the_distance_is_levenshteins(a: str, b: str) -> None:
    @cache
    def by_definition(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        return min(by_definition(i - 1, j) + 1, by_definition(i, j - 1) + 1, by_definition(i - 1, j - 1) + (a[i - 1] != b[j - 1]))

    assert distance(a, b) == by_definition(len(a), len(b))


def test_targets_are_in_double_quotes_or_a_column() -> None:
    assert targets('a sign "STOP" by a \u201clong road\u201d, it\'s "" and " "') == ["STOP", "long road"]
    assert targets("none", "STOP") == ["STOP"] and targets('"no"', ["a", "b", 3, " "]) == ["a", "b"]
    assert targets("a sign") == targets('an "odd quote') == targets('"no"', "") == targets('"no"', 7) == []


def test_a_row_without_a_text_to_read_is_refused_when_the_data_set_is_read(keys: Keys) -> None:
    rows = [Row(0, 'a "sign"'), Row(1, "a sign", source="train.jsonl:2")]
    with pytest.raises(
        UserError, match=r"reward 'it' needs a text to read in double quotes in its prompt, and row 1 \(train.jsonl:2\) has none"
    ):
        rewards("OCR", **keys("OCR")).check_columns(rows)
    told = rewards("OCR", column="said", **keys("OCR"))
    told.check_columns([Row(0, "a", columns={"said": ["x", "y"]})])
    for said in (None, "", " ", [], ["", 3], 7):
        with pytest.raises(UserError, match="needs a text to read in its column 'said', and row 0"):
            told.check_columns([Row(0, 'a "sign"', columns={"said": said})])


# -- boxes ------------------------------------------------------------------------------------------------------------------------------


def painted(*corners: Any, size: tuple[int, int] = (320, 160), value: float = 0.9) -> np.ndarray:
    """A map of probabilities (H, W) with these quadrilaterals."""
    image = Image.new("F", size, 0.05)
    for polygon in corners:
        ImageDraw.Draw(image).polygon([tuple(p) for p in polygon], fill=value)
    return np.array(image)


def turned(x: float, y: float, wide: float, high: float, degrees: float) -> np.ndarray:
    a = math.radians(degrees)
    turn = np.array([[math.cos(a), math.sin(a)], [-math.sin(a), math.cos(a)]])
    return np.array([[-wide, -high], [wide, -high], [wide, high], [-wide, high]]) / 2 @ turn + (x, y)


@pytest.mark.parametrize("degrees", [0, 10, -20, 35])
def test_a_box_is_the_smallest_rectangle_grown_by_its_area_over_its_circumference(degrees: float) -> None:
    (box,) = boxes_in(painted(turned(160, 80, 120, 30, degrees)), 640, 320)  # the picture has twice the map's pixels
    by = 2 * 120 * 30 * 1.5 / 300
    wanted = turned(320, 160, 240 + 2 * by, 60 + 2 * by, degrees)
    assert np.abs(box.corners - wanted).max() < 5 and box.score > 0.85
    assert box.size == pytest.approx((240 + 2 * by, 60 + 2 * by), abs=6)


def test_what_is_faint_small_or_a_line_is_no_box() -> None:
    faint = painted(turned(80, 80, 60, 20, 0), value=0.5)
    small = painted(turned(80, 80, 60, 2, 0))
    line = np.zeros((64, 64))
    line[10, 5:50] = 0.9
    line[40, 40] = 0.9
    assert boxes_in(faint, 320, 160) == boxes_in(small, 320, 160) == boxes_in(line, 64, 64) == boxes_in(np.zeros((32, 32)), 32, 32) == []


def test_lines_are_read_from_above_and_each_from_the_left() -> None:
    places = [(250, 40), (60, 44), (160, 37), (80, 110), (240, 106)]
    found = boxes_in(painted(*(turned(x, y, 50, 20, 0) for x, y in places)), 320, 160)
    assert [round(box.corners[:, 0].mean() / 10) * 10 for box in found] == [60, 160, 250, 80, 240]


def test_a_line_is_cut_out_upright() -> None:
    image = Image.new("RGB", (320, 160), "white")
    corners = turned(160, 80, 120, 40, 25)
    ImageDraw.Draw(image).polygon([tuple(p) for p in corners], fill="red")
    left = turned(160 - 45 * math.cos(math.radians(25)), 80 - 45 * math.sin(math.radians(25)), 20, 36, 25)
    ImageDraw.Draw(image).polygon([tuple(p) for p in left], fill="blue")
    line = np.array(cut(image, Box(corners, 1.0)))
    assert line.shape == (40, 120, 3)
    assert (line[8:32, 8:22] == (0, 0, 255)).all(-1).mean() > 0.95 and (line[6:34, 30:114] == (255, 0, 0)).all(-1).mean() > 0.95
    upright = cut(image, Box(turned(160, 80, 20, 60, 0), 1.0))
    assert upright.size == (60, 20), "a column of letters is laid down"


def test_what_the_networks_see() -> None:
    image = Image.new("RGB", (1920, 300), (255, 0, 51))
    seen = detector_input(image)
    assert seen.shape == (1, 3, 160, 960)  # 150 is nearest to 5 times 32
    blue, green, red = seen[0, :, 80, 480].tolist()
    assert (red, green, blue) == pytest.approx(((1 - 0.406) / 0.225, -0.456 / 0.224, (0.2 - 0.485) / 0.229), abs=1e-4)
    assert detector_input(Image.new("RGB", (10, 40))).shape == (1, 3, 32, 32)
    line = recogniser_input(Image.new("RGB", (60, 20), (255, 0, 51)))
    assert line.shape == (1, 3, 48, 320) and line[0, :, 20, 100].tolist() == pytest.approx([1, -1, -0.6]) and not line[..., 144:].any()
    assert (
        recogniser_input(Image.new("RGB", (800, 20))).shape[-1] == 1920 and recogniser_input(Image.new("RGB", (9000, 20))).shape[-1] == 3200
    )


def test_letters_are_ctc() -> None:
    best = [0, 1, 1, 0, 1, 2, 2, 0, 0, 3]
    assert decoded(torch.nn.functional.one_hot(torch.tensor(best), 4), ["blank", "a", "b", "c"]) == "aabc"
    assert decoded(torch.tensor([[0.9, 0.1], [0.8, 0.2]]), ["blank", "a"]) == ""


# -- the reward -------------------------------------------------------------------------------------------------------------------------


def test_the_whole_of_it_reads_what_the_recogniser_says(keys: Keys) -> None:
    """The tiny detector finds one line, the picture itself, and what surrounds it."""
    given, image = keys("OCR"), pictures(1)[0].resize((96, 64), 0)
    reward = rewards("OCR", **given)
    reader = reward.rewards[0].model.reader
    (line,) = reader.read(image)
    by = 95 * 63 * 1.5 / (2 * (95 + 63))
    around = Image.new("RGB", (round(95 + 2 * by), round(63 + 2 * by)))
    around.paste(image, (round(by), round(by)))
    model = PPOCRV5ServerRecForTextRecognition.from_pretrained(given["recognizer_name_or_path"]).eval()
    with torch.no_grad():
        expected = decoded(model(recogniser_input(around)).last_hidden_state[0], reader.characters)
    assert len(line) > 2 and distance(line, expected) <= len(expected) / 3, (line, expected)
    row = Row(0, f'a "{line}" and "{line}zzzz"')
    assert reward.score([row], [[image]])[0].item() == pytest.approx((1 + edit(f"{line}zzzz", line)) / 2)


@pytest.mark.exhaustive
def test_the_networks_of_pp_ocr_v6_read_too(keys: Keys, tmp_path: Path) -> None:
    """The small ones of transformers, with random weights; the detector's map is the same everywhere."""
    stages = {"out_features": ["stage2", "stage3", "stage4", "stage5"], "out_indices": [2, 3, 4, 5]}
    backbone: dict[str, Any] = {"model_type": "pp_lcnet_v3", "scale": 0.75, "divisor": 16, **stages}
    characters = json.loads((Path(keys("OCR")["recognizer_name_or_path"]) / "preprocessor_config.json").read_text())["character_list"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        channels = [m.shape[1] for m in AutoBackbone.from_config(AutoConfig.for_model(**backbone))(torch.zeros(2, 3, 64, 64)).feature_maps]
        config = PPOCRV6SmallDetConfig(backbone_config={**backbone}, layer_list_out_channels=channels)
        find = PPOCRV6SmallDetForObjectDetection(config).eval()
        read = PPOCRV6SmallRecForTextRecognition(PPOCRV6SmallRecConfig(head_out_channels=len(characters))).eval()
        for weight in list(find.head.parameters())[-2:]:
            weight.data.fill_(0.0 if weight.ndim > 1 else 2.0)
        biases = [weight for weight in read.head.parameters() if weight.shape == (len(characters),)]
        biases[-1].data = torch.linspace(-1e3, 1e3, len(characters))  # it says the last letter
    find.save_pretrained(tmp_path / "det"), read.save_pretrained(tmp_path / "rec")
    (tmp_path / "rec" / "preprocessor_config.json").write_text(json.dumps({"character_list": characters}))
    image = pictures(1)[0].resize((96, 64), 0)
    reward = rewards("OCR", detector_name_or_path=str(tmp_path / "det"), recognizer_name_or_path=str(tmp_path / "rec")).rewards[0].model
    with torch.no_grad():
        (box,) = boxes_in(find(detector_input(image)).last_hidden_state[0, 0].numpy(), *image.size)
        expected = decoded(read(recogniser_input(cut(image, box))).last_hidden_state[0], characters)
    assert reward.reader.read(image) == [expected] == [characters[-1]]


def test_by_line_the_best_one_counts_and_of_a_video_every_frame(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    read = {(0, 0, 0): ["stop", "the rest of it"], (255, 0, 0): ["sto", "p"], (0, 0, 255): []}
    monkeypatch.setattr("flow_factory.rewards.text_reader.TextReader.read", lambda self, image: read[image.getpixel((0, 0))])
    frames = [Image.new("RGB", (8, 8), color) for color in read]

    def score(media: list[Any], **extra: str) -> list[float]:
        return rewards("OCR", **extra, **keys("OCR")).score([Row(0, 'a "stop"')], [media])[0][:, 0].tolist()

    assert score(frames) == pytest.approx([1, 1, 0]) and score(frames, by="line") == pytest.approx([1, 0.75, 0])
    assert score(frames, metric="words") == pytest.approx([1, 0, 0])
    assert score([Clip(frames, 8.0), Clip(frames[2:], 8.0)]) == pytest.approx([2 / 3, 0])


def test_a_prompt_without_a_text_has_no_score(keys: Keys) -> None:
    output = OCRReward(RewardArguments(name="it", device="cpu", extra_kwargs=keys("OCR")), _Here())(["none", 'a "b"'], pictures(2))
    assert output.rewards.isnan().tolist() == [True, False] and "without a text" in output.extra_info["error"]


class _Here:
    device = torch.device("cpu")


def test_what_ocr_reads_is_asked_for(keys: Keys, tmp_path: Path) -> None:
    def asked(**extra: str) -> None:
        require_files([RewardArguments(name="it", reward_model="OCR", extra_kwargs=keys("OCR") | extra)], now=True)

    asked()
    for extra, said in (
        ({"metric": "bleu"}, "metric: wants edit or contains or words, got 'bleu'"),
        ({"by": "word"}, "by: wants whole or line, got 'word'"),
        ({"detector_name_or_path": "./gone"}, "detector_name_or_path: './gone' is neither a folder"),
    ):
        with pytest.raises(UserError, match=f"reward 'it': {said}"):
            asked(**extra)
    config = Path(keys("OCR")["recognizer_name_or_path"]) / "preprocessor_config.json"
    before = config.read_text()
    try:
        for text, said in (("{}", "has no character_list of the network's 10 characters"), ("[", "is not a JSON object; download it")):
            config.write_text(text)
            with pytest.raises(UserError, match=f"reward 'it': recognizer_name_or_path: .*{said}"):
                rewards("OCR", **keys("OCR"))
    finally:
        config.write_text(before)
