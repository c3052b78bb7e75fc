"""A signal is heard after every micro-batch; what is done of the epoch is kept, and what goes on from there ends as if nothing had been."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from PIL import Image

from flow_factory.config import load_config
from flow_factory.train import build
from flow_factory.training.run import Run
from flow_factory.utils.signals import Interrupted
from tests.tiny.pipelines import SMALL, saved
from tests.tiny.run import ROOT, TRAIN, tiny, write_rows, write_run
from tests.tiny.side_by_side import side_by_side
from tests.training.stopped import AUTO, KEYS, LOSS, PLACES, SAMPLE, SCORE, assert_ends_as, draws_of, kept, stop, told, trapped


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


# -- several processes ----------------------------------------------------------------------------------------------------------------


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
