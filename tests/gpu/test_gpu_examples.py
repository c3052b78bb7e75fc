"""Every example trains its tiny checkpoint on a GPU; four of them compiled; and nothing makes the host wait inside a denoising loop."""

import gc
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch.profiler import ProfilerActivity, profile

from flow_factory.config import load_config
from flow_factory.train import build
from flow_factory.training.replay_error import measure
from flow_factory.training.run import Run
from tests.commands.examples import GENERIC, PATHS, assert_learned, small
from tests.gpu.device import DEVICE, EAGER_COMPILE, REAL
from tests.tiny.run import trained

pytestmark = pytest.mark.gpu

FOUR = ("grpo-lora-flux1", "grpo-lora-sd3_5", "grpo-lora-qwen_image", "grpo-lora-wan21_t2v")


@pytest.fixture(autouse=True)
def _empty_card() -> Iterator[None]:
    yield
    gc.collect()
    torch.cuda.empty_cache()


def started(name: str, folder: Path, *overrides: str) -> Run:
    AcceleratorState._reset_state(reset_partial_state=True)
    return build(load_config(PATHS[name], [*small(PATHS[name], folder), *overrides]))


@pytest.mark.parametrize("name", [name for name, path in PATHS.items() if path.stem not in GENERIC])
def test_an_example_trains_on_what_it_sampled(name: str, tmp_path: Path) -> None:
    """To the bit, in the example's own precision, for two epochs."""
    run = started(name, tmp_path)
    before = trained(run)
    assert {p.device.type for p in before.values()} == {DEVICE}
    assert_learned(run, [run.trainer.epoch() for _ in range(2)], before)


@pytest.mark.parametrize("name", FOUR)
def test_a_compiled_example_learns(name: str, tmp_path: Path) -> None:
    """An epoch ends the run where sampling and training differ by more than its clip range and a few floors bear."""
    run = started(name, tmp_path, "model.compile=true", "train.enable_gradient_checkpointing=true", *EAGER_COMPILE)
    before = trained(run)
    measure(run.trainer)
    lines = [run.trainer.epoch() for _ in range(2)]
    assert all(math.isfinite(value) for line in lines for value in line.values()) and "train/on_policy_error" in lines[0]
    assert not any(torch.equal(p, before[k]) for k, p in trained(run).items())


# -- the host waits for nothing ---------------------------------------------------------------------------------------------------------

WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaMemcpy")
"""Runtime calls in which the host waits; the profiler itself synchronises the device."""


class Inside:
    """Watches from the second forward of a transformer to the last of a rollout: the whole loop but its ends."""

    def __init__(self, transformer: torch.nn.Module, forwards: int):
        self.transformer, self.forwards, self.seen = transformer, forwards, 0
        self.profiler = profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if REAL else [])])

    def __call__(self, *_: Any) -> None:
        self.seen += 1
        if self.seen == 2:
            self.profiler.start()
            set_debug("warn")
        if self.seen == self.forwards:
            set_debug("default")
            self.profiler.stop()

    @contextmanager
    def watching(self) -> Iterator[list[str]]:
        """Gathers the lines of Python at which the host waited."""
        places: list[str] = []
        hook = self.transformer.register_forward_pre_hook(self)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                yield places
            finally:
                hook.remove()
        places += [f"{w.filename}:{w.lineno}" for w in said if "synchroniz" in str(w.message)]

    def waits(self) -> list[str]:
        return [event.name for event in self.profiler.events() if event.name in WAITS]


def set_debug(mode: str) -> None:
    if REAL:
        torch.cuda.set_sync_debug_mode(mode)


@pytest.mark.parametrize("name", [*FOUR, "grpo-lora-z_image", "grpo-lora-flux2_t2i", "grpo-lora-ltx2_t2av"])
def test_the_host_waits_for_nothing_inside_a_denoising_loop(name: str, tmp_path: Path) -> None:
    run = started(name, tmp_path, "train.num_inference_steps=6")
    transformer = next(iter(run.context.policy.models.values()))
    counted: list[Any] = []
    hook = transformer.register_forward_pre_hook(lambda *_: counted.append(1))
    draws = len(run.trainer.collector.draws())
    run.trainer.collector(0)  # what is made at first use has been made
    hook.remove()
    inside = Inside(transformer, len(counted) // draws)
    with inside.watching() as places:
        run.trainer.collector(0)
    assert inside.seen == len(counted) and inside.forwards >= 6
    assert not places and not inside.waits(), (places, inside.waits())
