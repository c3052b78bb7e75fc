"""What is kept of an epoch that was stopped, and when: all of it comes back, or none and a line."""

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flow_factory.training import kept_rollouts
from flow_factory.training.finished_work import Pool, _laid, _lifted, _media, _plain_media
from flow_factory.types import Clip
from tests.tiny.run import logged, tiny
from tests.training.stopped import AUTO, KEYS, SAMPLE, kept, stop, trapped


def flipped(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def of_another(index: Path, key: str, value: Any) -> None:
    said = json.loads(index.read_text())
    said["of"][key] = value
    index.write_text(json.dumps(said))


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "a bit": (lambda folder: flipped(folder / "part-00000.safetensors"), "the checksum of part-00000.safetensors is wrong"),
    "cut": (lambda folder: os.truncate(folder / "part-00000.safetensors", 999), "the checksum of part-00000.safetensors is wrong"),
    "a part is gone": (lambda folder: (folder / "part-00000.safetensors").unlink(), "No such file"),
    "no index": (lambda folder: (folder / "index.json").unlink(), "No such file"),
    "half an index": (lambda folder: os.truncate(folder / "index.json", 99), "is damaged"),
    "another seed": (lambda folder: of_another(folder / "index.json", "train.seed", 7), "train.seed was 7, and is 42"),
    "another state": (lambda folder: of_another(folder / "index.json", "the state", "00"), 'the state was "00", and is '),
    "other processes": (lambda folder: of_another(folder / "index.json", "num_processes", 2), "num_processes was 2, and is 1"),
    "another program": (lambda folder: of_another(folder / "index.json", "the program", ""), 'the program was "", and is '),
}


def test_what_is_damaged_or_anothers_is_dropped_with_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny(tmp_path, *KEYS, "eval.eval_freq=0")
    stop(run, SAMPLE, 2)
    checkpoint = run.folder / "checkpoints" / "epoch_0"
    trainer = tiny(tmp_path, *KEYS, "eval.eval_freq=0", AUTO).trainer
    shutil.copytree(checkpoint / "rollouts", whole := tmp_path / "whole")
    for name, (damage, why) in DAMAGE.items():
        damage(checkpoint / "rollouts")
        line = kept_rollouts.restore(trainer, checkpoint)
        assert line is not None and "\n" not in line, name
        assert line.startswith("the samples of epoch 1 that were kept cannot be used, and are drawn again: ") and why in line, (name, line)
        assert trainer.collector.done is None
        shutil.rmtree(checkpoint / "rollouts")
        shutil.copytree(whole, checkpoint / "rollouts")
    others = [replace(row, columns={"seen": k}) for k, row in enumerate(trainer.context.rows)]
    trainer.collector.context = replace(trainer.context, rows=others)
    assert ".jsonl:" in (line := str(kept_rollouts.restore(trainer, checkpoint))) and "or its condition, has changed" in line
    trainer.collector.context = trainer.context
    read: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(kept_rollouts, "file_sha256", lambda file: read.append(file) or "")
        kept_rollouts.code_of(trainer)
    assert {"core", "models", "rewards", "training", "utils"} <= {Path(file).parent.name for file in read}, "of every room"
    assert kept_rollouts.restore(trainer, checkpoint) == "2 micro-batches of epoch 1 are reused"
    assert trainer.collector.done is not None and len(trainer.collector.done.rollouts) == 2


@pytest.mark.exhaustive
def test_much_is_not_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tiny(tmp_path, *KEYS, "eval.eval_freq=0", "log.rollouts_gb=1e-6")
    stop(run, SAMPLE, 2)
    assert "2 micro-batches of epoch 1 are not kept: they are " in (said := capsys.readouterr().err) and "log.rollouts_gb is 1e-06" in said
    assert (run.folder / "checkpoints" / "epoch_0" / "state").is_dir() and kept(run.folder) == []


def test_a_tensor_comes_back_in_its_layout_and_a_clip_with_its_sound() -> None:
    x = torch.randn(2, 3, 4, 5).bfloat16()
    for one in (x, x.permute(0, 2, 3, 1), x.to(memory_format=torch.channels_last), x[:, 1], x[0, 0, 0, 0]):
        back = _lifted({k: v.contiguous() if k == "values" else v for k, v in _laid(one).items()})
        assert torch.equal(back, one) and back.dtype == one.dtype
        assert sorted(range(one.ndim), key=back.stride) == sorted(range(one.ndim), key=one.stride)
    sound = np.random.default_rng(0).normal(size=(2, 9)).astype(np.float32)
    clip = Clip([Image.new("RGB", (4, 2), (k, 0, 0)) for k in range(3)], 24, sound, 16000)
    back = _media(_plain_media(clip))
    assert (back.fps, back.sample_rate, back.frames) == (24, 16000, clip.frames) and np.array_equal(back.audio, sound)
    with pytest.raises(TypeError, match="the epoch is a CMYK image, which is not cacheable"):
        Pool().packed(Image.new("CMYK", (2, 2)), "the epoch")


# -- when a checkpoint is saved -------------------------------------------------------------------------------------------------------


@pytest.mark.exhaustive
def test_after_the_first_step_the_epoch_is_learnt_to_its_end(tmp_path: Path) -> None:
    run = tiny(tmp_path, *KEYS, "eval.eval_freq=0")
    stop(run, "flow_factory.training.learner:Learner.update", 2)
    assert run.context.progress.updates == run.context.plan.optimiser_steps_per_epoch == 2
    assert (run.folder / "checkpoints" / "epoch_1" / "state").is_dir() and kept(run.folder) == []


@pytest.mark.slow
def test_the_save_comes_before_the_evaluation_and_after_so_many_minutes(tmp_path: Path) -> None:
    run = tiny(tmp_path, "log.save_model_only=false", "log.save_freq=0", "log.save_minutes=1e-9")
    fails = partial(exec, "raise OSError('power')")
    with trapped("flow_factory.training.evaluation:Evaluator.run", 2, fails), pytest.raises(OSError, match="power"):
        run()
    run.saver.wait()
    assert (run.folder / "checkpoints" / "epoch_1" / "state" / "index.json").is_file()
    run = tiny(tmp_path, "log.save_model_only=false", "log.save_freq=0", "log.save_minutes=5", AUTO)
    run()
    assert [line["step"] for line in logged(run.folder) if "eval/reward_size_mean" in line] == [0, 1, 2]
    run.save_started = time.monotonic() - 299
    assert not run.save_minutes_passed()
    run.save_started = time.monotonic() - 301
    assert run.save_minutes_passed()
