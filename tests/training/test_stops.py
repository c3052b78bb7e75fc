"""A signal is heard after every micro-batch; what is done of the epoch is kept, and what goes on from there ends as if nothing had been."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from flow_factory.config import load_config
from flow_factory.data.order import EpochGroup
from flow_factory.train import build
from flow_factory.training import kept_rollouts
from flow_factory.training.finished_work import Pool, _laid, _lifted, _media, _plain_media
from flow_factory.training.rollout import RolloutCollector
from flow_factory.training.run import Run
from flow_factory.types import Clip, Rollout
from flow_factory.utils.signals import Interrupted
from tests.runs.test_resume import tensors
from tests.tiny.killed import holder_of, trap
from tests.tiny.pipelines import SMALL, saved
from tests.tiny.run import ROOT, TRAIN, logged, tiny, write_rows, write_run
from tests.tiny.side_by_side import side_by_side

KEYS = (
    "train.unique_sample_num_per_epoch=4", "train.kl_beta=0.1", "log.save_model_only=false", "log.save_freq=1", "eval.eval_freq=2",
    "rewards.batch_size=3",
)  # fmt: skip
AUTO = "model.resume_path=auto"
SAMPLE = "flow_factory.training.rollout:RolloutCollector.sample"
SCORE = "flow_factory.rewards.jpeg:JpegCompressibility.__call__"
LOSS = "flow_factory.algorithms.grpo:GRPO.loss"
PLACES = {
    "drawing": (SAMPLE, 3),
    "scoring": (SCORE, 4),
    "comparing": ("flow_factory.training.trainer:Trainer.compute_advantages", 1),
    "looking back": ("flow_factory.training.learner:Learner.velocity_of", 2),
    "learning": (LOSS, 2),
    "evaluating": ("flow_factory.training.evaluation:Evaluator._draw", 1),
}
"""A function, and at which of its calls the signal comes."""


@contextmanager
def trapped(path: str, call: int, fault: Callable[[], None]) -> Iterator[None]:
    """`trap`, inside."""
    holder, name = holder_of(path)
    original = getattr(holder, name)
    trap(path, call, fault)
    try:
        yield
    finally:
        setattr(holder, name, original)


def told(me: bool = True) -> Callable[[], None]:
    return partial(os.kill, os.getpid(), signal.SIGTERM) if me else lambda: None


def stop(run: Run, path: str, call: int) -> None:
    with trapped(path, call, told()), pytest.raises(Interrupted, match="SIGTERM"):
        run()


def draws_of(run: Run) -> list[tuple[int, int, tuple[int, ...]]]:
    """(epoch, group, members of it) of each call that draws, from now on."""
    calls: list[tuple[int, int, tuple[int, ...]]] = []
    collector = run.trainer.collector

    def counted(group: EpochGroup, members: Sequence[int], epoch: int) -> Rollout:
        calls.append((epoch, group.number, tuple(members)))
        return RolloutCollector.sample(collector, group, members, epoch)

    collector.sample = counted  # type: ignore[method-assign]
    return calls


def kept(run: Path) -> list[str]:
    """The checkpoints that have a part of an epoch."""
    return [folder.parent.name for folder in (run / "checkpoints").glob("**/*rollouts")]


def assert_ends_as(run: Path, unbroken: Path) -> None:
    ended, wanted = (dict(tensors(folder / "checkpoints" / "epoch_2")) for folder in (run, unbroken))
    assert ended.keys() == wanted.keys() and [k for k in wanted if not torch.equal(ended[k], wanted[k])] == []
    assert logged(run) == logged(unbroken), "no step is missing, doubled or different"


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tiny(tmp_path_factory.mktemp("unbroken"), *KEYS)
    run()
    return run.folder


@pytest.mark.exhaustive
def test_a_run_that_is_stopped_again_and_again_goes_on_to_the_bit(tmp_path: Path, unbroken: Path) -> None:
    """While it draws, scores and learns, in one epoch; no sample is drawn twice."""
    draws = []
    for path, call in ((SAMPLE, 3), (SAMPLE, 2), (SCORE, 2), (LOSS, 2)):
        run = tiny(tmp_path, *KEYS, *([AUTO] if draws else []))
        draws.append(draws_of(run))
        stop(run, path, call)
        assert kept(run.folder) == ["epoch_0"]
    (run.folder / "checkpoints/epoch_0/.partial-rollouts").mkdir()  # of a kill
    run = tiny(tmp_path, *KEYS, AUTO)
    draws.append(draws_of(run))
    run()
    assert [len([d for d in calls if d[0] == 0]) > 0 for calls in draws] == [True, True, True, True, False]
    once = [d for calls in draws for d in calls]
    assert len(once) == len(set(once)) == 16
    assert_ends_as(run.folder, unbroken)
    assert kept(run.folder) == [], "they go when the epoch is saved"


@pytest.mark.exhaustive
@pytest.mark.parametrize("place", PLACES)
def test_a_run_that_is_stopped_anywhere_goes_on_to_the_bit(tmp_path: Path, unbroken: Path, place: str) -> None:
    run = tiny(tmp_path, *KEYS)
    stop(run, *PLACES[place])
    assert [p.name for p in (run.folder / "checkpoints").iterdir()] == ["epoch_0"]
    tiny(tmp_path, *KEYS, AUTO)()
    assert_ends_as(run.folder, unbroken)


@pytest.mark.exhaustive
@pytest.mark.parametrize("path", [SAMPLE, "flow_factory.training.learner:Learner.update"])
@pytest.mark.parametrize(
    ("family", "keys"),
    [
        ("flux1", ("train.trainer_type=nft",)),
        ("flux1", ("train.trainer_type=dpo", "train.gradient_step_per_epoch=1", "train.beta=100")),
        ("flux1", ("train.trainer_type=dgpo", "train.num_train_timesteps=2", "train.kl_beta=0")),
        ("flux1", ("train.rollout_batch_size=auto", "train.offload_samples_to_cpu=true")),
        ("flux1", ("rewards.reward_model=tests.tiny.rewards.Outshines", "train.best_of_n=2", "eval.group_size=2")),
        ("flux1", ("rewards.reward_model=my_reward.Slow", "rewards.async_reward=true")),
        ("flux1", ("rewards.reward_model=tests.tiny.rewards.Outshines", "rewards.async_reward=true")),
        ("flux1_kontext", ()),
        ("ltx2_t2av", ("rewards.reward_model=my_reward.Loud",)),
    ],
)
def test_whatever_is_drawn_and_learnt_from_is_kept(tmp_path: Path, path: str, family: str, keys: tuple[str, ...]) -> None:
    write_run(tmp_path)
    (tmp_path / "my_reward.py").write_text(MINE)
    if family == "flux1_kontext":
        write_pictures(tmp_path / "data")
    if family != "flux1":
        sizes = {f"{section}.{key}": value for section in ("train", "eval") for key, value in SMALL[family].items()}
        more = {"model.model_name_or_path": saved(family), "model.model_type": family, "train.guidance_scale": 1.0}
        keys += (*(f"{key}={value}" for key, value in {**sizes, **more}.items()), "train.unique_sample_num_per_epoch=2")
    keys = (*KEYS, *keys, "eval.eval_freq=0")
    tiny(tmp_path, *keys, "run_name=unbroken")()
    run = tiny(tmp_path, *keys)
    stop(run, path, 2 if path == SAMPLE else 1)
    assert kept(run.folder) == ["epoch_0"]
    run = tiny(tmp_path, *keys, AUTO)
    draws = draws_of(run)
    run()
    assert len(draws) < 2 * run.context.plan.micro_batches_per_rank
    assert_ends_as(run.folder, run.folder.parent / "unbroken")


MINE = """\
import time

from flow_factory.rewards import PointwiseRewardModel


class Loud(PointwiseRewardModel):
    required_fields = ("audio",)

    def __call__(self, audio, **columns):
        return [float((wave**2).mean()) for wave in audio]


class Slow(PointwiseRewardModel):
    required_fields = ("image",)

    def __call__(self, image, **columns):
        time.sleep(0.3)
        return [float(sum(picture.tobytes())) for picture in image]
"""


def write_pictures(data: Path) -> None:
    """Of every row another one."""
    (data / "images").mkdir()
    for split, prompts in (("train", TRAIN), ("test", TRAIN[:2])):
        write_rows(data / f"{split}.jsonl", [{"prompt": p, "image": f"{k}.png"} for k, p in enumerate(prompts)])
    for k in range(len(TRAIN)):
        pixels = np.random.default_rng(k).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(data / "images" / f"{k}.png")


@pytest.mark.exhaustive
def test_after_the_first_step_the_epoch_is_learnt_to_its_end(tmp_path: Path) -> None:
    run = tiny(tmp_path, *KEYS, "eval.eval_freq=0")
    stop(run, "flow_factory.training.learner:Learner.update", 2)
    assert run.context.progress.updates == run.context.plan.optimiser_steps_per_epoch == 2
    assert (run.folder / "checkpoints" / "epoch_1" / "state").is_dir() and kept(run.folder) == []


# -- what is kept -----------------------------------------------------------------------------------------------------------------------


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


def test_what_is_damaged_or_anothers_is_dropped_with_one_line(tmp_path: Path, unbroken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


# -- when a checkpoint is saved ---------------------------------------------------------------------------------------------------------


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


# -- several processes ------------------------------------------------------------------------------------------------------------------


def _stopped(rank: int, processes: int, places: list[str], keys: tuple[str, ...]) -> None:
    """A run that never stops, and for each place one of which the last process gets a signal there, and that goes on."""

    def run(name: str, *more: str) -> Run:
        AcceleratorState._reset_state(reset_partial_state=True)
        return build(load_config("tiny.yaml", [*KEYS, *keys, *more, f"run_name={name}", f"num_processes={processes}"]))

    run("unbroken")()
    said: dict[str, Any] = {}
    for place in places:
        name = place.replace(" ", "_")
        first = run(name)
        try:
            with trapped(*PLACES[place], told(rank == processes - 1)):
                first()
        except Interrupted as error:
            said[place] = [str(error), len(first.trainer.collector.drawn()), first.context.progress.epoch]
        again = run(name, AUTO)
        draws = draws_of(again)
        again()
        said[place].append(len(draws))
    Path(f"said.{rank}.json").write_text(json.dumps(said))


LAUNCH = f"config_file={ROOT}/examples/launch"
ENGINES = {"ddp": (), "fsdp2": (f"{LAUNCH}/fsdp2.yaml",), "zero3": (f"{LAUNCH}/deepspeed_zero3.yaml",)}
FEW = ("drawing", "scoring", "learning")


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("engine", "places", "keys"),
    [
        ("ddp", FEW, ()),
        pytest.param("ddp", ("comparing", "looking back", "evaluating"), (), marks=pytest.mark.exhaustive),
        pytest.param("fsdp2", FEW, (), marks=pytest.mark.exhaustive),
        pytest.param("zero3", FEW, (), marks=pytest.mark.exhaustive),
        pytest.param(
            "ddp", ("drawing", "scoring"), ("train.unique_sample_num_per_epoch=1", "train.group_size=8", "train.gradient_step_per_epoch=1"),
            id="shared", marks=pytest.mark.exhaustive,
        ),
        pytest.param("ddp", ("drawing", "learning"), ("rewards.reward_model=my_reward.Slow", "rewards.async_reward=true"), id="beside"),
    ],
)  # fmt: skip
def test_a_signal_to_one_process_stops_all_after_the_same_micro_batch(
    tmp_path: Path, engine: str, places: Sequence[str], keys: tuple[str, ...]
) -> None:
    write_run(tmp_path)
    (tmp_path / "my_reward.py").write_text(MINE)
    side_by_side(2, tmp_path, _stopped, 2, [*places], ENGINES[engine] + keys)
    other, it = (json.loads((tmp_path / f"said.{rank}.json").read_text()) for rank in range(2))
    for place in places:
        stopped = tmp_path / "save" / place.replace(" ", "_")
        assert it[place][0] == "SIGTERM" and other[place][1:] == it[place][1:], place
        _, there, epochs, drawn = it[place]
        of_an_epoch = 4 if "train.group_size=8" in keys else 8
        assert there + drawn == (2 - epochs) * (of_an_epoch // 2) and (there > 0) == (place != "evaluating"), "nothing is drawn twice"
        assert_ends_as(stopped, tmp_path / "save" / "unbroken")


@pytest.mark.slow
@pytest.mark.exhaustive
def test_in_another_number_of_processes_the_samples_are_made_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path)
    side_by_side(2, tmp_path, _left)
    tiny(tmp_path, *KEYS, AUTO)()
    assert "that were kept cannot be used, and are drawn again: num_processes was 2, and is 1" in capsys.readouterr().err


def _left(rank: int) -> None:
    run = build(load_config("tiny.yaml", [*KEYS, "num_processes=2"]))
    with trapped(*PLACES["drawing"], told(rank == 1)), pytest.raises(Interrupted):
        run()
