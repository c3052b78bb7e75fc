"""Rewards are asked as pictures come, in the same calls as if all came at once, and pictures do not outlive them."""

import random
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from flow_factory.hparams import RewardArguments
from flow_factory.rewards import GroupwiseRewardModel, PointwiseRewardModel
from flow_factory.rewards.scoring import load_rewards
from flow_factory.training.meter import Meter
from flow_factory.types import Row
from flow_factory.utils.errors import RewardError
from tests.tiny.run import TEST, TRAIN, tiny, trained, write_rows, write_run

CALLS: dict[str, list[list[int]]] = {}
"""By reward, the colours of the pictures of each call."""
ALIVE: list[int] = []
"""How many of the pipeline's pictures there were at each call."""
DRAWN: list[Any] = []
"""Weak references to all that it made."""


def colours(image: list[Image.Image]) -> list[int]:
    return [picture.getpixel((0, 0))[0] for picture in image]


class Each(PointwiseRewardModel):
    changes_inputs = False

    def __call__(self, image: list, **columns: Any) -> list[float]:
        CALLS.setdefault(self.config.name, []).append(colours(image))
        return [float(c) for c in colours(image)]


class Other(Each):
    """Which one entry alone has."""


class Whole(GroupwiseRewardModel):
    def __call__(self, image: list, **columns: Any) -> list[float]:
        CALLS.setdefault(self.config.name, []).append(colours(image))
        return [c / len(image) for c in colours(image)]


class Counts(PointwiseRewardModel):
    def __call__(self, image: list, **columns: Any) -> list[float]:
        ALIVE.append(sum(ref() is not None for ref in DRAWN))
        return [float(c) for c in colours(image)]


class FailsLater(PointwiseRewardModel):
    """In its third call."""

    def __call__(self, image: list, **columns: Any) -> list[float]:
        CALLS.setdefault("it", []).append(colours(image))
        if len(CALLS["it"]) == 3:
            raise ValueError("the third call")
        return [float(c) for c in colours(image)]


@pytest.mark.parametrize("seed", range(20))
def test_rewards_are_called_as_if_all_samples_came_at_once(seed: int) -> None:
    rng = random.Random(seed)
    classes = [("a", "Each", rng.randint(1, 7)), ("b", "Whole", 3), ("c", "Other", rng.randint(1, 20))]
    entries = [RewardArguments(name=n, reward_model=f"{__name__}:{c}", batch_size=size) for n, c, size in classes]
    rewards = load_rewards(entries, None, Accelerator(cpu=True))[0]
    group = rng.randint(1, 5)
    rows = [Row(k, "x") for k in range(rng.randint(1, 8))]
    media = [[Image.new("RGB", (2, 2), (r.id * group + k, 0, 0)) for k in range(group)] for r in rows]
    CALLS.clear()
    at_once, calls = rewards.score(rows, media), dict(CALLS)
    assert all(len(batch) == size for name, _, size in (classes[0], classes[2]) for batch in calls[name][:-1])
    CALLS.clear()
    stream, done = rewards.stream(), 0
    while done < len(rows):
        k = rng.randint(0, len(rows) - done)
        stream.add(rows[done : done + k], media[done : done + k], last=False)
        done += k
    stream.add([], [], last=True)
    assert torch.equal(stream.scores(), torch.cat(at_once)) and calls == CALLS
    assert stream.scores()[:, 0].tolist() == [float(k) for k in range(len(rows) * group)]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on the pipeline's pictures are counted."""
    make = VaeImageProcessor.numpy_to_pil

    def pictures(images: Any) -> list[Image.Image]:
        made = make(images)
        DRAWN.extend(map(weakref.ref, made))
        return made

    monkeypatch.setattr(VaeImageProcessor, "numpy_to_pil", staticmethod(pictures))
    ALIVE.clear(), DRAWN.clear()


def peaks(folder: Path, prompts: Sequence[str], *overrides: str) -> tuple[int, int]:
    """The most pictures that were alive at a call of the reward, in an epoch and in an evaluation."""
    folder.mkdir()
    write_run(folder)
    write_rows(folder / "data" / "test.jsonl", [{"prompt": p} for p in prompts])
    run = tiny(folder, f"rewards.reward_model={__name__}.Counts", "rewards.batch_size=4", "log.num_samples=2", *overrides)
    found = []
    for part in (run.trainer.epoch, run.evaluators[0].run):
        ALIVE.clear(), DRAWN.clear()
        kept = part()
        many = len(prompts) if part == run.evaluators[0].run else run.context.plan.samples_per_epoch
        assert len(DRAWN) == many and len(ALIVE) == many // 4
        found.append(max(ALIVE))
        del kept
    assert sum(ref() is not None for ref in DRAWN) == 0 and len(run.trainer.shown) == 2
    return found[0], found[1]


def test_pictures_do_not_add_up(tmp_path: Path, counted: None) -> None:
    """Whatever the number of groups and of test rows: those of a call, those that are drawn beside it, and those that are shown."""
    few = peaks(tmp_path / "few", TEST[:4], "train.unique_sample_num_per_epoch=2")
    many = peaks(tmp_path / "many", [f"{p} {k}" for p in TEST for k in range(5)], "train.unique_sample_num_per_epoch=6")
    assert few[0] <= many[0] <= 4 + 2 + 2 and few[1] <= many[1] <= 4 + 2 + 2


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [
    (), pytest.param(("train.rollout_batch_size=4", "train.trainer_type=nft"), marks=pytest.mark.exhaustive),
])  # fmt: skip
def test_an_epoch_is_the_same_however_early_rewards_are_asked(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    found = []
    for size in (2, 64):
        run = tiny(tmp_path, *overrides, f"rewards.batch_size={size}", "train.unique_sample_num_per_epoch=3", f"run_name=by_{size}",
                   "train.gradient_step_per_epoch=1")  # fmt: skip
        metrics = run.trainer.epoch()
        kept = {k: v for k, v in metrics.items() if not k.startswith(("time/", "perf/")) and "seconds" not in k}
        shown = [(s.prompt, s.media.tobytes(), s.rewards) for s in run.trainer.shown]
        found.append((kept, shown, trained(run)))
    assert found[0][:2] == found[1][:2]
    assert all(torch.equal(found[0][2][name], p) for name, p in found[1][2].items())


def test_a_reward_that_fails_in_the_midst_of_a_rollout_leaves_the_last_epochs_state(tmp_path: Path) -> None:
    CALLS.clear()
    keys = ("eval.eval_freq=0", "rewards.batch_size=4", "train.unique_sample_num_per_epoch=2", "train.ema_decay=0.9")
    run = tiny(tmp_path, f"rewards.reward_model={__name__}.FailsLater", *keys)
    drawn: list[int] = []
    sample = run.trainer.collector.sample
    run.trainer.collector.sample = lambda group, members, epoch: (drawn.append(epoch), sample(group, members, epoch))[1]  # type: ignore[method-assign]
    with pytest.raises(RewardError, match="the third call"):
        run()
    assert drawn.count(0) == 4 and drawn.count(1) == 2, "on a CPU the first group is scored before the second one is drawn"
    assert (run.folder / "checkpoints" / "epoch_1" / "state").is_dir()


@pytest.mark.slow
def test_each_row_is_opened_once_for_its_group(tmp_path: Path) -> None:
    run = tiny(tmp_path, "eval.group_size=4", "eval.per_device_batch_size=2")
    opened: list[tuple[str, int]] = []

    class Opens:
        def __init__(self, name: str, conds: Sequence[Any]):
            self.name, self.conds = name, conds

        def __getitem__(self, k: int) -> Any:
            opened.append((self.name, k))
            return self.conds[k]

    run.trainer.collector.context = replace(run.context, conds=Opens("train", run.context.conds))  # type: ignore[arg-type]
    run.evaluators[0].conds = Opens("test", run.evaluators[0].conds)  # type: ignore[union-attr, assignment]
    run.evaluators[0].run()
    assert sorted(opened) == [("test", k) for k in range(len(TEST))]
    opened.clear()
    run.trainer.epoch()
    assert len(opened) == 2 == len({k for _, k in opened} & {*range(len(TRAIN))})


def test_what_a_phase_inside_another_takes_is_not_that_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 0.0, 1.0, 3.0, 10.0, 11.0, 20.0])
    monkeypatch.setattr("flow_factory.training.meter.time.perf_counter", lambda: next(ticks))
    meter = Meter(Accelerator(cpu=True))
    with meter.phase("rollout"):
        for _ in range(2):
            with meter.phase("reward"):
                pass
    assert {phase: here.work for phase, here in meter.here.items()} == {"reward": 2.0 + 1.0, "rollout": 20.0 - 3.0}
