"""Rewards that open when some of an epoch was trained on, and runs with them."""

import threading
from pathlib import Path
from typing import Any

import pytest

from flow_factory.rewards import GroupwiseRewardModel, PointwiseRewardModel
from flow_factory.training.run import Run
from tests.rewards.test_reward_scoring import colours
from tests.tiny.run import tiny

LONG = 120.0
KEYS = (
    "train.unique_sample_num_per_epoch=4", "train.gradient_step_per_epoch=4", "train.global_std=false", "eval.eval_freq=0",
    "train.advantage_aggregation=sum", "log.save_model_only=false", "log.save_freq=1",
)  # fmt: skip
OVERLAP = "train.reward_optimization_overlap=true"


class Light(PointwiseRewardModel):
    """Scores the last `after` calls of an epoch of 4 once `gate` is open, or raises then where `fails` is set."""

    gate = threading.Event()
    after = 0
    calls = 0
    fails = False

    def __call__(self, image: list, **columns: Any) -> list[float]:
        number, Light.calls = Light.calls % 4, Light.calls + 1
        if number >= 4 - self.after:
            assert self.gate.wait(LONG), "nothing was trained on beside the reward"
            if self.fails:
                raise ValueError("the server is gone")
        return [float(c) / 100 for c in colours(image)]


class Order(GroupwiseRewardModel):
    def __call__(self, image: list, **columns: Any) -> list[float]:
        values = colours(image)
        return [sum(other < mine for other in values) / len(values) for mine in values]


class Dark(PointwiseRewardModel):
    def __call__(self, image: list, **columns: Any) -> list[float]:
        return [-float(c) / 300 for c in colours(image)]


class Lags(Light):
    """On the last process, where it fails in its fourth call if asked to."""

    def __call__(self, image: list, **columns: Any) -> list[float]:
        if self.accelerator.process_index == self.accelerator.num_processes - 1:
            threading.Event().wait(0.05)
            if self.config.extra_kwargs.get("fails") and Light.calls % 4 == 3:
                raise ValueError("the server is gone")
        return super().__call__(image)


def entries(*classes: str, **keys: Any) -> str:
    own = "".join(f", {k}: {v}" for k, v in keys.items())
    listed = [
        f"{{reward_model: '{__name__}:{c}', name: {c.lower()}, async_reward: true, device: cpu, batch_size: 4{own}}}" for c in classes
    ]
    return f"rewards=[{', '.join(listed)}]"


def prepared(folder: Path, name: str, *keys: str, rewards: str = "") -> Run:
    return tiny(folder, *KEYS, rewards or entries("Light"), f"run_name={name}", *keys)


def opens_after(run: Run, updates: int, monkeypatch: pytest.MonkeyPatch, then: Any = lambda: None) -> None:
    """`Light.gate` opens at this optimiser step."""
    step, done = run.trainer.learner.step, []

    def stepped(*args: Any) -> Any:
        found = step(*args)
        done.append(1)
        if len(done) == updates:
            then()
            Light.gate.set()
        return found

    monkeypatch.setattr(run.trainer.learner, "step", stepped)
