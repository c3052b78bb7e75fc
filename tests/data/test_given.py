"""Offline DPO: pairs of given pictures take the place of rollouts and rewards."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from PIL import Image

from flow_factory.check import check
from flow_factory.config import load_config
from flow_factory.data.given import GivenMedia
from flow_factory.data.mp4 import save_video
from flow_factory.training.run import Run
from flow_factory.types import Clip
from flow_factory.utils.errors import UserError
from tests.tiny.pipelines import SMALL, saved
from tests.tiny.run import TRAIN, forwards, tiny, trained, write_rows, write_run

OFFLINE = ("train.trainer_type=dpo", "train.offline=true", "train.group_size=2", "train.per_device_batch_size=2", "train.ema_decay=0",
           "eval.eval_freq=0", "train.gradient_step_per_epoch=1", "train.learning_rate=1e-2", "train.num_train_timesteps=4")  # fmt: skip
COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220)}


def write_pairs(folder: Path, size: tuple[int, int] = (32, 32), **columns: object) -> None:
    """Red is preferred to blue whatever the prompt says."""
    write_run(folder)
    images = folder / "data" / "images"
    images.mkdir()
    for name, colour in COLOURS.items():
        Image.new("RGB", size, colour).save(images / f"{name}.png")
    rows = [{"prompt": p, "chosen": "red.png", "rejected": "blue.png"} | columns for p in TRAIN]
    write_rows(folder / "data" / "train.jsonl", rows)


def offline(folder: Path, *overrides: str) -> Run:
    return tiny(folder, *OFFLINE, *overrides)


@pytest.mark.slow
def test_the_margin_of_the_given_pairs_rises_without_a_rollout_or_a_score(tmp_path: Path) -> None:
    write_pairs(tmp_path)
    run = offline(tmp_path, "train.max_epochs=6")
    with forwards(FluxTransformer2DModel) as seen:
        metrics = [run.trainer.epoch() for _ in range(6)]
    assert len(seen) == 6 * 2 * 4 * 2 + 2, "2 rows, 4 noise levels, policy and reference; once, the primer and `UpdateChecks.effect`"
    assert metrics[0]["train/margin"] == 0 and metrics[0]["train/loss"] == pytest.approx(0.693147, abs=1e-5)
    assert metrics[-1]["train/margin"] > 1 and metrics[-1]["train/pair_accuracy"] == 1
    assert not any("reward" in name for name in metrics[0] if not name.startswith("time/"))
    assert [s.rewards for s in run.trainer.shown[:2]] == [{"chosen": 1.0}, {"chosen": 0.0}]


@pytest.mark.slow
def test_a_pair_the_other_way_round_teaches_the_opposite(tmp_path: Path) -> None:
    """The first step's gradients are opposite to the bit but for the order of two samples in a batch."""
    gradients = []
    for name, pair in (("a", ("red.png", "blue.png")), ("b", ("blue.png", "red.png"))):
        folder = tmp_path / name
        folder.mkdir()
        write_pairs(folder, chosen=pair[0], rejected=pair[1])
        run = offline(folder, "train.learning_rate=1e-6", "train.adam_weight_decay=0")
        before = trained(run)
        run.trainer.epoch()
        gradients.append({k: run.context.engine.optimizer.state[p]["exp_avg"].clone() for k, p in run.context.policy.trained().items()})
        assert any(not torch.equal(before[k], p) for k, p in trained(run).items())
    assert any(g.abs().max() > 0 for g in gradients[0].values())
    for key, one in gradients[0].items():
        torch.testing.assert_close(one, -gradients[1][key], rtol=1e-3, atol=1e-7)


def test_pictures_of_another_size_are_scaled_to_cover_it_and_cropped(tmp_path: Path) -> None:
    write_pairs(tmp_path, size=(96, 48))
    trainer = offline(tmp_path).trainer
    states, media = trainer.context.given.states(trainer.context.rows[0], {})
    assert [m.size for m in media] == [(32, 32)] * 2 and media[0].getpixel((16, 16))[0] > 200
    assert states.dtype == torch.float32 and len(states) == 2 and not torch.equal(states[0], states[1])
    assert torch.equal(states, trainer.context.adapter.to_state(media, trainer.context.call))
    assert isinstance(trainer.context.given, GivenMedia)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "a"}, r"train.jsonl:1: training needs two file names in 'chosen' and 'rejected'; columns: none"),
        ({"prompt": "a", "chosen": "red.png", "rejected": ["blue.png"]}, "columns: chosen, rejected"),
        ({"prompt": "a", "chosen": "red\0.png", "rejected": "blue.png"}, r"train.jsonl:1: .* is not a file name: it has a NUL character"),
        ({"prompt": "a", "chosen": "red.png", "rejected": "green.png"}, r"train.jsonl:1: .*green.png"),
    ],
)
def test_a_row_without_its_pair_is_named_before_anything_heavy(tmp_path: Path, row: dict, said: str) -> None:
    write_pairs(tmp_path)
    (tmp_path / "data" / "train.jsonl").write_text(json.dumps(row) + "\n")
    config = load_config(tmp_path / "tiny.yaml", OFFLINE)
    with pytest.raises(UserError, match=said):
        check(config)


def test_the_check_counts_the_pairs_and_asks_no_reward_of_them(tmp_path: Path) -> None:
    write_pairs(tmp_path)
    said = check(load_config(tmp_path / "tiny.yaml", [*OFFLINE, "train.max_epochs=null"]))
    assert "pairs of chosen and rejected media, all of each decoded: 6" in said and "does not draw" not in said


def test_clips_are_pairs_too_and_too_short_ones_are_named(tmp_path: Path) -> None:
    """The first num_frames of a clip count."""
    write_run(tmp_path)
    videos = tmp_path / "data" / "videos"
    videos.mkdir()
    call = SMALL["wan21_t2v"]
    for name, frames in (("long", call["num_frames"] + 3), ("short", call["num_frames"] - 1)):
        pictures = [Image.new("RGB", (48, 32), (30 * k, 200, 90)) for k in range(frames)]
        save_video(Clip(pictures, 16), videos / f"{name}.mp4")
    rows = [{"prompt": "a", "chosen": "long.mp4", "rejected": rejected} for rejected in ("long.mp4", "short.mp4")]
    write_rows(tmp_path / "data" / "train.jsonl", rows)
    sizes = [f"{section}.{k}={v}" for section in ("train", "eval") for k, v in call.items()]
    model = [f"model.model_name_or_path={saved('wan21_t2v')}", "model.model_type=wan2_t2v"]
    with pytest.raises(UserError, match=f"train.jsonl:2: the clip has {call['num_frames'] - 1} frames; training needs "):
        offline(tmp_path, *model, *sizes)
    trainer = offline(tmp_path, *model, *sizes, "data.max_dataset_size=1").trainer
    states, media = trainer.context.given.states(trainer.context.rows[0], {})
    assert [len(m.frames) for m in media] == [call["num_frames"]] * 2 and torch.equal(*states)
