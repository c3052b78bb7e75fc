"""Runs that a signal stops at a place of the program, and what goes on from there."""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch

from flow_factory.data.order import EpochGroup
from flow_factory.training.rollout import RolloutCollector
from flow_factory.training.run import Run
from flow_factory.types import Rollout
from flow_factory.utils.signals import Interrupted
from tests.runs.test_resume import tensors
from tests.tiny.killed import holder_of, trap
from tests.tiny.run import logged

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
