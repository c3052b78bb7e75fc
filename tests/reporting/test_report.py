"""Grids show the very pixels, pairs are marked by what the rewards did, curves and summary take whatever a run has logged so far."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from flow_factory.reporting.curves import _smooth, plot_curves
from flow_factory.reporting.paired_gains import compare
from flow_factory.reporting.pictures import (
    FELL,
    GAP,
    LINE,
    MARGIN,
    MOST_LINES,
    ROSE,
    SAME,
    TEXT,
    _font,
    _wrap,
    animation,
    before_after_sheet,
    caption,
    contact_sheet,
    excerpt,
    still,
)
from flow_factory.reporting.report import save_before_after, save_grid, write_summary
from flow_factory.types import Clip, Sample
from tests.tiny.videos import clip


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def sample(picture, prompt="a red cube", **rewards: float) -> Sample:
    return Sample(prompt, picture, rewards or {"shapes": 0.53})


def test_a_grid_has_the_pixels_of_small_pictures_enlarged(tmp_path):
    pictures = [noise(64, 64, k) for k in range(5)]
    save_grid([sample(p) for p in pictures], tmp_path / "new" / "grid.png", columns=3)
    grid = np.asarray(Image.open(tmp_path / "new" / "grid.png"))
    cell = 192 + MARGIN
    assert grid.shape[1] == 3 * cell + MARGIN
    height = (grid.shape[0] - MARGIN) // 2
    for k, picture in enumerate(pictures):
        top, left = MARGIN + k // 3 * height, MARGIN + k % 3 * cell
        assert (grid[top : top + 192, left : left + 192] == np.asarray(picture).repeat(3, 0).repeat(3, 1)).all()


def test_prompt_and_rewards_are_written_under_the_picture():
    bare = contact_sheet([Sample("", noise(64, 64), {})])
    full = contact_sheet([sample(noise(64, 64))])
    assert full.height == bare.height + LINE
    below = np.asarray(full)[MARGIN + 192 + 6 :]
    assert (below < 128).any() and (np.asarray(bare)[MARGIN + 192 + 6 :] == 255).all()


@pytest.mark.parametrize(
    ("size", "shown"), [((1024, 1024), (320, 320)), ((1024, 512), (320, 160)), ((256, 200), (256, 200)), ((32, 64), (160, 320))]
)
def test_pictures_of_any_size_are_shown_readably(size, shown):
    sheet = contact_sheet([Sample("", Image.new("RGB", size, "red"), {})])
    red = (np.asarray(sheet) == (255, 0, 0)).all(-1)
    assert (red.any(0).sum(), red.any(1).sum()) == shown


def test_a_sheet_of_large_pictures_has_fewer_columns():
    assert contact_sheet([sample(noise(512, 512))] * 8).width < 2100


def test_clips_are_shown_by_four_frames_in_a_row():
    whole = clip(7, (16, 8))
    row = np.asarray(still(whole))
    assert row.shape == (56, 4 * 112 + 3 * GAP, 3)
    for k, frame in enumerate((0, 2, 4, 6)):
        left = k * (112 + GAP)
        assert (row[:, left : left + 112] == np.asarray(whole.frames[frame]).repeat(7, 0).repeat(7, 1)).all()


@pytest.mark.parametrize(("frames", "shown"), [(1, 1), (2, 2), (3, 3), (4, 4), (5, 4), (81, 4)])
def test_an_excerpt_runs_from_the_first_frame_to_the_last(frames, shown):
    whole = clip(frames)
    short = excerpt(whole)
    assert len(short.frames) == shown and short.frames[0] is whole.frames[0] and short.frames[-1] is whole.frames[-1]
    assert shown / short.fps == pytest.approx(frames / whole.fps)
    assert excerpt(short) == short


@pytest.mark.parametrize(("fps", "frames", "left"), [(16, 17, 17), (30, 31, 31), (7.5, 5, 5), (120, 60, 20), (16, 1, 1)])
def test_an_animation_lasts_as_long_as_the_clip(fps, frames, left):
    gif = Image.open(animation(clip(frames, (24, 16), fps)))
    seconds = []
    for k in range(gif.n_frames):
        gif.seek(k)
        seconds.append(gif.info["duration"] / 1000)
    assert (gif.format, gif.size, gif.n_frames, gif.info["loop"]) == ("GIF", (24, 16), left, 0)
    assert sum(seconds) == pytest.approx(frames / fps, abs=0.006) and min(seconds) >= 0.02


def test_an_animation_is_reduced_and_keeps_the_colours():
    colors = ["red", "lime", "blue"]
    gif = Image.open(animation(Clip([Image.new("RGB", (640, 320), color) for color in colors], 8)))
    assert gif.size == (320, 160)
    for k, color in enumerate(colors):
        gif.seek(k)
        assert gif.convert("RGB").getpixel((5, 5)) == Image.new("RGB", (1, 1), color).getpixel((0, 0))


def test_the_caption_is_one_line():
    assert caption(Sample("a cube", None, {"shapes": 0.534, "ocr": math.nan})) == "a cube | shapes=0.53 | ocr=no score"


@pytest.mark.parametrize("text", ["a red cube on a blue table " * 9, "x" * 200, "红色的立方体" * 30, "word " + "y" * 90, ""])
def test_wrapped_lines_fit_and_lose_nothing_but_the_tail(text):
    lines = _wrap(text, 160)
    assert len(lines) <= MOST_LINES and all(_font(TEXT).getlength(line) <= 165 for line in lines)
    assert text.replace(" ", "").startswith("".join(lines).replace(" ", "").rstrip("…"))


def has(image: np.ndarray, color: str) -> bool:
    """Whether a frame of the colour stands there: some column with a hundred pixels of it."""
    rgb = tuple(int(color[k : k + 2], 16) for k in (1, 3, 5))
    return bool(((image == rgb).all(-1).sum(0) > 100).any())


@pytest.mark.parametrize(("old", "new", "color"), [(0.2, 0.7, ROSE), (0.7, 0.2, FELL), (0.5, 0.501, SAME), (math.nan, 0.5, SAME)])
def test_the_frame_says_what_the_reward_did(tmp_path, old, new, color):
    before, after = [sample(noise(64, 64, 1), r=old)], [sample(noise(64, 64, 2), r=new)]
    save_before_after(before, after, tmp_path / "pairs.png")
    pairs = np.asarray(Image.open(tmp_path / "pairs.png"))
    assert [c for c in (ROSE, FELL, SAME) if has(pairs, c)] == [color]
    for picture in (before[0].media, after[0].media):
        enlarged = np.asarray(picture).repeat(3, 0).repeat(3, 1)
        assert any((pairs[y : y + 192, x : x + 192] == enlarged).all() for y in range(40, 90) for x in (18, 18 + 208))


def test_the_frames_of_clips_stand_above_each_other(tmp_path):
    before, after = [sample(clip(9, seed=1), r=0.2)], [sample(clip(9, seed=2), r=0.7)]
    save_before_after(before, after, tmp_path / "pairs.png")
    pairs = np.asarray(Image.open(tmp_path / "pairs.png"))
    (upper, left), (lower, beside) = (place(pairs, np.asarray(still(s[0].media))) for s in (before, after))
    assert left == beside and lower > upper + 112 and has(pairs, ROSE) and not has(pairs, FELL)


def place(sheet: np.ndarray, picture: np.ndarray) -> tuple[int, int]:
    """Where the picture's very pixels stand."""
    height, width = picture.shape[:2]
    corner = (sheet[: 1 - height or None, : 1 - width or None] == picture[0, 0]).all(-1)
    return next((y, x) for y, x in np.argwhere(corner).tolist() if (sheet[y : y + height, x : x + width] == picture).all())


def test_weights_decide_what_better_means(tmp_path):
    before, after = [sample(noise(64, 64), a=0.0, b=5.0)], [sample(noise(64, 64), a=0.5, b=4.0)]
    for weights, color in ((None, FELL), ({"a": 1.0, "b": 0.1}, ROSE)):
        save_before_after(before, after, tmp_path / "pairs.png", weights=weights)
        assert has(np.asarray(Image.open(tmp_path / "pairs.png")), color)


def test_pairs_that_changed_come_first_and_the_title_counts_all():
    before = [sample(noise(64, 64, k), f"row {k}", r=0.5) for k in range(9)]
    after = [sample(noise(64, 64, 50 + k), f"row {k}", r={3: 0.9, 5: 0.1, 7: 0.6}.get(k, 0.5)) for k in range(9)]
    sheet = np.asarray(before_after_sheet(before, after, columns=2, most=4))
    places = {k: place(sheet, np.asarray(still(after[k].media))) for k in (3, 5, 7, 0)}
    assert sorted(places, key=places.__getitem__) == [3, 5, 7, 0], "the order of the rows, and then one that is the same"
    assert has(sheet, ROSE) and has(sheet, FELL) and len(np.asarray(before_after_sheet(before, after, 2))) > len(sheet)
    with pytest.raises(StopIteration):
        place(sheet, np.asarray(still(after[1].media)))


def test_pairs_of_other_prompts_are_refused(tmp_path):
    with pytest.raises(ValueError, match="same prompts"):
        save_before_after([sample(noise(64, 64))], [sample(noise(64, 64), "else")], tmp_path / "pairs.png")


def run(folder, epochs: int, **last) -> None:
    with (folder / "metrics.jsonl").open("w") as file:
        for e in range(epochs):
            record = {
                "train/reward_shapes_mean": e / 10,
                "train/ratio": 1.0,
                "train/kl_div": None,
                "time/rollout_s": 3.0,
                "time/optimise_s": 2.0,
            }
            file.write(json.dumps({"step": e, "time": 0} | record) + "\n")
        file.write(json.dumps({"step": epochs, "time": 0} | last) + '\n{"step": ')


LOGGED = {
    "one epoch": (1, {}),
    "three epochs": (3, {}),
    "an evaluation": (3, {"eval/reward_shapes_mean": 0.4, "time/eval_s": 9.0}),
    "several rewards": (40, {"eval/reward_ocr_mean": 0.4, "train/reward_mean": 3.0}),
    "missing scores": (12, {"eval/reward_ocr_mean": None}),
    "all": (
        5,
        {
            "train/clip_frac_high": 0.1,
            "train/clip_frac_low": 0.1,
            "train/grad_norm": 1.0,
            "perf/samples_per_s": 3.0,
            "perf/peak_memory_gb": 7.0,
        },
    ),
    "evaluation alone": (0, {"eval/reward_shapes_mean": 0.4}),
}


@pytest.mark.parametrize("case", LOGGED)
def test_curves_of_whatever_was_logged(tmp_path, case):
    epochs, last = LOGGED[case]
    run(tmp_path, epochs, **last)
    plot_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    assert np.asarray(Image.open(tmp_path / "curves.png").convert("L")).std() > 5


def test_curves_of_nothing_are_refused(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match="no metrics to draw yet"):
        plot_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")


def test_smoothing_keeps_a_straight_line():
    x = np.arange(30)
    for window, left in ((7, 24), (1, 30)):
        where, mean = _smooth(x, 2 + 0.1 * x, window)
        assert len(where) == left and np.allclose(mean, 2 + 0.1 * where)


def ends_of(folder):
    found = compare(folder)
    return found.before, found.after


def test_the_summary_compares_first_and_last_evaluation(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 0, "eval/reward_shapes_mean": 0.25}\n{"step": 1, "train/ratio": 1}\n{"step": 5, "eval/reward_shapes_mean": 0.4}\n'
        '{"step": 9, "eval/reward_shapes_mean": 0.75, "eval/reward_ocr_mean": 0.5, "eval/reward_x_mean": null}\n'
    )
    (tmp_path / "lora").mkdir()
    files = {"LoRA": tmp_path / "lora", "gone": tmp_path / "gone"}
    text = write_summary(tmp_path / "out" / "summary.md", "run", ends_of(tmp_path), files, {"train on": "ff-train x.yaml"}, ["2 min"])
    assert text == (tmp_path / "out" / "summary.md").read_text()
    assert "| reward shapes |   0.25 |  0.75 |   +0.5 |" in text and "| reward ocr    |      - |   0.5 |      - |" in text
    assert f"- LoRA: {tmp_path / 'lora'}" in text and "gone" not in text and "ff-train x.yaml" in text and "- 2 min" in text


def test_one_evaluation_has_no_before(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "eval/a": 0.25}\n')
    assert ends_of(tmp_path) == ({}, {"a": 0.25})
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "train/a": 0.25}\n')
    assert "No evaluation" in write_summary(tmp_path / "s.md", "run", ends_of(tmp_path), {}, {})
