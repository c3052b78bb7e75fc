"""Supervised fine-tuning as a run does it: targets take the place of rollouts and rewards, and test rows bring a held-out loss."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from PIL import Image

from flow_factory.check import check
from flow_factory.config import load_config
from flow_factory.core.randomness import generator
from flow_factory.training.run import Run
from flow_factory.utils.errors import UserError
from tests.tiny.pipelines import SMALL, saved
from tests.tiny.run import TEST, TRAIN, forwards, logged, read_state, tiny, write_rows, write_run
from tests.tiny.several import assert_same_run, several

pytestmark = pytest.mark.exhaustive
SFT = (
    "train.trainer_type=sft", "rewards=null", "train.group_size=1", "train.per_device_batch_size=1", "train.learning_rate=1e-2",
    "train.unique_sample_num_per_epoch=0", "train.gradient_accumulation_steps=2", "train.ema_decay=0",
)  # fmt: skip
COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220)}


def write_targets(folder: Path, test: tuple[dict[str, Any], ...] | None = None) -> None:
    """Every picture is red."""
    write_run(folder)
    images = folder / "data" / "images"
    images.mkdir()
    for name, colour in COLOURS.items():
        Image.new("RGB", (48, 32), colour).save(images / f"{name}.png")
    write_rows(folder / "data" / "train.jsonl", [{"prompt": p, "target": "red.png"} for p in TRAIN])
    write_rows(folder / "data" / "test.jsonl", [*(test or [{"prompt": p, "target": "red.png"} for p in TEST])])


def sft(folder: Path, *overrides: str) -> Run:
    return tiny(folder, *SFT, *overrides)


def held_out(run: Run) -> dict[str, float]:
    return run.evaluators[0].run()[0]


def test_the_held_out_loss_falls_without_a_rollout_or_a_score(tmp_path: Path) -> None:
    write_targets(tmp_path)
    run = sft(tmp_path, "train.max_epochs=8", "train.num_train_timesteps=2")
    before = held_out(run)
    assert held_out(run) == before, "the same noise and levels"
    with forwards(FluxTransformer2DModel) as seen:
        metrics = [run.trainer.epoch() for _ in range(8)]
    assert len(seen) == 8 * 6 * 2 + 1, "6 rows, 2 noise levels; once `check_effect`"
    assert not any("reward" in name for name in metrics[0] if not name.startswith("time/"))
    assert metrics[-1]["train/loss"] < metrics[0]["train/loss"] and held_out(run)["eval/loss"] < 0.9 * before["eval/loss"]
    assert run.context.progress.updates == 8 * 3
    assert run.trainer.shown[0].rewards == {"target": 1.0} and run.trainer.shown[0].media.getpixel((0, 0))[0] > 200


def test_a_rows_held_out_loss_depends_on_no_other_row(tmp_path: Path) -> None:
    rows = [{"prompt": p, "target": name} for p, name in zip(TEST, ("red.png", "blue.png", "red.png", "blue.png"), strict=True)]
    found = []
    for name, some in (("all", rows), ("two", rows[:2]), ("none", [{"prompt": "a"}, {"prompt": "b"}])):
        folder = tmp_path / name
        folder.mkdir()
        write_targets(folder, tuple(some))
        found.append(held_out(sft(folder)).get("eval/loss"))
    assert found[0] is not None and found[1] is not None and found[2] is None
    both = sft(tmp_path / "all").evaluators[0]
    assert both.held_out is not None
    each = [both.held_out([k])["loss"] for k in range(4)]
    assert sum(each) / 4 == pytest.approx(found[0], rel=1e-9) and sum(each[:2]) / 2 == pytest.approx(found[1], rel=1e-9)


def test_without_rewards_only_what_is_looked_at_is_drawn(tmp_path: Path) -> None:
    write_targets(tmp_path)
    run = sft(tmp_path, "log.num_samples=2")
    with forwards(FluxTransformer2DModel) as seen:
        metrics, samples = run.evaluators[0].run()
    assert len(samples) == 2 and len(seen) == 4 + 1 + 3 and "eval/loss" in metrics
    scored = sft(tmp_path, "eval_rewards.reward_model=jpeg_compressibility", "run_name=scored")
    assert "eval/reward_jpeg_compressibility_mean" in held_out(scored) and scored.trainer.epoch()["train/loss"] > 0


def test_a_target_is_a_draw_from_the_vaes_distribution_keyed_by_row_and_epoch(tmp_path: Path) -> None:
    write_targets(tmp_path)
    run = sft(tmp_path)
    groups = run.trainer.collector.epoch_groups(0)
    first, again, later = (run.trainer.collector.given(groups[0], [0], epoch).x0 for epoch in (0, 0, 1))
    assert first is not None and again is not None and later is not None
    assert torch.equal(first, again) and not torch.equal(first, later)
    given, row = run.context.given, run.context.rows[groups[0].row]
    assert given is not None
    drawn = given.states(row, {}, generator(run.context.config.train.seed, "target", 0, row.id))[0]
    mode = given.states(row, {})[0]
    assert torch.equal(first, drawn) and not torch.equal(first, mode)
    fixed = sft(tmp_path, "train.sample_targets=false", "run_name=fixed").trainer.collector.given(groups[0], [0], 0).x0
    assert fixed is not None and torch.equal(fixed, mode)


def test_samples_of_a_group_are_the_same_target_at_other_noise(tmp_path: Path) -> None:
    write_targets(tmp_path)
    run = sft(tmp_path, "train.group_size=4", "train.per_device_batch_size=2")
    rollouts = run.trainer.collector(0)
    assert len(rollouts) == 6 * 2 and rollouts[0].x0 is not None and torch.equal(rollouts[0].x0[0], rollouts[0].x0[1])
    run.trainer.judge(rollouts)
    (point,) = run.context.algorithm.points(rollouts[0])
    assert point.noise is not None and not torch.equal(point.noise[0], point.noise[1])


def test_clips_are_targets_too(tmp_path: Path) -> None:
    from flow_factory.data.mp4 import save_video
    from flow_factory.types import Clip

    write_targets(tmp_path)
    (tmp_path / "data" / "videos").mkdir()
    call = SMALL["wan21_t2v"]
    pictures = [Image.new("RGB", (48, 32), (30 * k, 200, 90)) for k in range(call["num_frames"])]
    save_video(Clip(pictures, 16), tmp_path / "data" / "videos" / "long.mp4")
    for split in ("train", "test"):
        write_rows(tmp_path / "data" / f"{split}.jsonl", [{"prompt": "a", "target": "long.mp4"}] * 2)
    sizes = [f"{section}.{k}={v}" for section in ("train", "eval") for k, v in call.items()]
    run = sft(tmp_path, f"model.model_name_or_path={saved('wan21_t2v')}", "model.model_type=wan2_t2v", *sizes)
    assert run.trainer.epoch()["train/loss"] > 0 and held_out(run)["eval/loss"] > 0


@pytest.mark.parametrize(("row", "said"), [
    ({"prompt": "a"}, r"train.jsonl:1: training needs a file name in 'target'; columns: none"),
    ({"prompt": "a", "target": ["red.png"]}, r"train.jsonl:1: training needs a file name in 'target'; columns: target"),
    ({"prompt": "a", "target": "green.png"}, r"train.jsonl:1: .*green.png"),
    ({"prompt": "a", "target": "text.png"}, r"train.jsonl:1: .*text.png"),
])  # fmt: skip
def test_a_row_without_its_target_is_named_before_anything_heavy(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    write_targets(tmp_path)
    (tmp_path / "data" / "images" / "text.png").write_text("no picture")
    write_rows(tmp_path / "data" / "train.jsonl", [row])
    with pytest.raises(UserError, match=said):
        check(load_config(tmp_path / "tiny.yaml", SFT))


def test_lines_of_the_public_form_are_demonstrations_and_a_preference_is_none(tmp_path: Path) -> None:
    write_targets(tmp_path)
    image = {"type": "image", "path": "images/red.png"}
    line = {"schema_version": 2, "input": {"prompt": "a"}, "supervision": {"type": "demonstration", "target": {"media": [image]}}}
    write_rows(tmp_path / "data" / "train.jsonl", [line, line])
    assert "targets, all of each decoded: 2" in check(load_config(tmp_path / "tiny.yaml", SFT))
    assert sft(tmp_path).trainer.epoch()["train/loss"] > 0
    with pytest.raises(UserError, match="train.jsonl:1: a demonstration, and grpo draws its own samples; write .* or trainer_type: sft"):
        check(load_config(tmp_path / "tiny.yaml"))
    side = {"media": [image]}
    line["supervision"] = {"type": "preference", "chosen": side, "rejected": side}
    write_rows(tmp_path / "data" / "train.jsonl", [line])
    with pytest.raises(UserError, match="train.jsonl:1: a preference, and sft learns from demonstrations; write .* trainer_type: dpo"):
        check(load_config(tmp_path / "tiny.yaml", SFT))


def test_an_epoch_is_a_pass_over_the_rows_or_most_of_them(tmp_path: Path) -> None:
    write_targets(tmp_path)
    assert sft(tmp_path).context.plan.rows_per_epoch == 6
    few = sft(tmp_path, "train.gradient_accumulation_steps=4", "train.lr_warmup_steps=0.5")
    assert few.context.plan.rows_per_epoch == 4 and few.context.config.train.lr_warmup_steps == 1
    seen = [group.row for epoch in range(3) for group in few.trainer.collector.epoch_groups(epoch)]
    assert sorted(seen) == sorted([*range(6), *range(6)]), "each row as often as any"


def test_a_run_that_was_stopped_goes_on_as_if_it_never_was(tmp_path: Path) -> None:
    """With a dropout, whose masks are keyed by the update."""
    write_targets(tmp_path)
    keys = ("log.save_freq=1", "log.save_model_only=false", "train.lr_scheduler=cosine", "train.ema_decay=0.9", "train.max_epochs=3")
    keys += ("model.lora_dropout=0.2",)
    sft(tmp_path, *keys, "run_name=whole")()
    sft(tmp_path, *keys, "run_name=part", "train.lr_total_steps=9", "train.max_epochs=2")()
    sft(tmp_path, *keys, "run_name=part", f"model.resume_path={tmp_path}/save/part")()
    one, other = (read_state(tmp_path / "save" / name / "checkpoints/epoch_3") for name in ("whole", "part"))
    assert set(one) == set(other) and all(torch.equal(one[k], other[k]) for k in one)
    lines = [{k: v for k, v in line.items() if k != "step"} for name in ("whole", "part") for line in logged(tmp_path / "save" / name)[-2:]]
    assert lines[:2] == lines[2:]


def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    keys = (*SFT, "train.gradient_accumulation_steps=auto", "train.gradient_step_per_epoch=1", "train.adam_epsilon=1e-3",
            "log.save_freq=1", "log.save_model_only=false", "eval.eval_freq=2")  # fmt: skip
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        write_targets(folder)
        several(folder, processes, {"sft": keys})
    one, two = (tmp_path / str(processes) / "save" / "sft" for processes in (1, 2))
    assert_same_run(two, one, exact=False)
    assert logged(two)[0]["eval/loss"] == pytest.approx(logged(one)[0]["eval/loss"], rel=1e-6)
