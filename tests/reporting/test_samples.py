"""What a run keeps of its samples: a fair comparison with later ones, also after a resume, and videos that play."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flow_factory.reporting.pictures import before_after_sheet
from flow_factory.reporting.samples import keep_samples, kept_samples, of_same_rows, save_videos
from flow_factory.training.context import TrainingContext
from flow_factory.training.run import Run
from flow_factory.types import Sample
from tests.tiny.run import tiny
from tests.tiny.videos import clip, played

PROMPTS = ["a red ball, bouncing", "一个蓝色的球", "../x" + " and on" * 50, ""]


def samples(seed: int = 0, prompts: Sequence[str] = PROMPTS, **kind: Any) -> list[Sample]:
    """Clips of other lengths, one of them silent."""
    media = [clip(5 + k, (48, 32), seed=10 * seed + k, sound=k != 1, **kind) for k in range(len(prompts))]
    return [Sample(p, m, {"r": 0.1 * k + seed}) for k, (p, m) in enumerate(zip(prompts, media, strict=True))]


def pictures(seed: int = 0) -> list[Sample]:
    return [Sample(s.prompt, s.media.frames[0], s.rewards) for s in samples(seed)]


@pytest.mark.parametrize("drawn", [samples, pictures])
def test_what_was_kept_compares_as_if_it_were_still_there(tmp_path: Path, drawn: Any) -> None:
    keep_samples(drawn(0), tmp_path / "before")
    kept = kept_samples(tmp_path / "before")
    assert [(s.prompt, s.rewards) for s in kept] == [(s.prompt, s.rewards) for s in drawn(0)]
    assert before_after_sheet(kept, drawn(1)).tobytes() == before_after_sheet(drawn(0), drawn(1)).tobytes()


def test_other_samples_replace_what_was_kept(tmp_path: Path) -> None:
    keep_samples(samples(0), tmp_path)
    keep_samples(samples(0)[:1], tmp_path)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["000_0.png", "000_1.png", "000_2.png", "000_3.png", "samples.json"]
    keep_samples(pictures(0)[:1], tmp_path)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["000.png", "samples.json"]
    assert kept_samples(tmp_path / "never") == []


def test_before_is_paired_with_the_same_row_alone(tmp_path: Path) -> None:
    """By its number and content where it is known, else by place and prompt."""
    named = [replace(s, row=f":{k}:{k}") for k, s in enumerate(pictures(0))]
    keep_samples(named, tmp_path)
    later = [replace(named[2], media=None), replace(named[0], row=":0:other")]
    assert of_same_rows(kept_samples(tmp_path), later) == [None, None, later[0], None]
    keep_samples(pictures(0), tmp_path)
    assert of_same_rows(kept_samples(tmp_path), later) == [None] * 4
    assert of_same_rows(kept_samples(tmp_path), named) == named


def test_before_and_after_play_and_lie_side_by_side(tmp_path: Path) -> None:
    for label, seed in (("1_before", 0), ("2_after", 1), ("2_after", 2)):
        save_videos(samples(seed), tmp_path, label)
    names = sorted(f.name for f in tmp_path.iterdir())
    assert names[:4] == [f"{p}_{w}.mp4" for p in ("000_a-red-ball-bouncing", "001_一个蓝色的球") for w in ("1_before", "2_after")]
    assert len(names) == 8 and [n[:3] for n in names] == [f"{k:03d}" for k in (0, 0, 1, 1, 2, 2, 3, 3)]
    assert all(len(n.encode()) < 255 for n in names)
    for name, sample in zip(names[1::2], samples(2), strict=True):
        video = played(tmp_path / name)
        assert len(video.frames) == len(sample.media.frames) and video.fps == sample.media.fps
        errors = [np.abs(a.astype(float) - np.asarray(b)).mean() for a, b in zip(video.frames, sample.media.frames, strict=True)]
        assert max(errors) < 12, "not these frames, or not in this order"
        assert (video.sound is None) == (sample.media.audio is None)
        if video.sound is not None:
            assert video.sample_rate == 16000 and video.sound.shape[1] >= sample.media.audio.shape[1] and video.sound.std() > 0.2


def test_pictures_leave_no_videos(tmp_path: Path) -> None:
    save_videos(pictures(), tmp_path / "videos", "1_before")
    assert not (tmp_path / "videos").exists()


class Moving:
    """An evaluator of a model of videos: other clips at every evaluation."""

    rows, usual = PROMPTS, range(len(PROMPTS))
    shares = [2]
    taken = range(2)
    name = ""
    scores: dict[str, list[float]] = {}
    context: TrainingContext

    def __init__(self) -> None:
        self.drawn: list[list[Sample]] = []

    def contents(self, rows: Sequence[int]) -> list[str]:
        return [self.rows[k] for k in rows]

    def run(self, full: bool = False) -> tuple[dict[str, float], list[Sample]]:
        self.drawn.append(samples(len(self.drawn)))
        return {"eval/reward_r_mean": 1.0, "eval/reward_mean": 1.0}, self.drawn[-1]


def moving(run: Run, evaluator: Moving) -> Run:
    run.evaluators = (evaluator,)  # type: ignore[assignment]
    evaluator.context = run.context
    return run


@pytest.mark.slow
def test_a_resumed_run_compares_with_the_clips_of_its_first_evaluation(tmp_path: Path) -> None:
    evaluator = Moving()
    keys = "log.save_model_only=false", "train.ema_decay=0"
    moving(tiny(tmp_path, *keys, "train.max_epochs=1"), evaluator)()
    folder = tmp_path / "save" / "run"
    first = {f.name: f.read_bytes() for f in (folder / "videos").iterdir()}
    resumed = tiny(tmp_path, *keys, "train.max_epochs=2", f"model.resume_path={folder}")
    summary = moving(resumed, evaluator)()
    assert len(evaluator.drawn) == 3 and str(folder / "videos") in summary
    sheet = Image.open(folder / "before_after.png").convert("RGB")
    assert sheet.tobytes() == before_after_sheet(evaluator.drawn[0], evaluator.drawn[2]).tobytes()
    for file in (folder / "videos").iterdir():
        assert (file.read_bytes() == first[file.name]) == file.name.endswith("1_before.mp4"), file.name


@pytest.mark.parametrize("number", [0, 2])
def test_a_run_that_has_nothing_to_show_yet_starts(tmp_path: Path, number: int) -> None:
    """Before the first epoch there are no training samples; with `log.num_samples: 0` there never are any."""
    run = tiny(tmp_path, "logging_backend=tensorboard", "train.max_epochs=1", f"log.num_samples={number}")
    run()
    assert (run.folder / "before_after.png").exists() == bool(number) and list((run.folder / "tensorboard").iterdir())
