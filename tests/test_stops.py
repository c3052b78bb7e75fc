"""A signal is heard after every micro-batch; what goes on from there ends as the run that never stopped, to the bit."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from flow_factory.config import load_config
from flow_factory.interrupt import Interrupted
from flow_factory.run import Run
from flow_factory.train import build
from tests.test_resume import tensors
from tests.tiny.killed import holder_of, trap
from tests.tiny.run import ROOT, logged, tiny, write_run
from tests.tiny.side_by_side import side_by_side

KEYS = (
    "train.unique_sample_num_per_epoch=4", "train.kl_beta=0.1", "log.save_model_only=false", "log.save_freq=1", "eval.eval_freq=2",
    "rewards.batch_size=3",
)  # fmt: skip
PLACES = {
    "drawing": ("flow_factory.roller:Roller.sample", 3),
    "scoring": ("flow_factory.rewards.jpeg:JpegCompressibility.__call__", 2),
    "comparing": ("flow_factory.trainer:Trainer.weigh", 1),
    "looking back": ("flow_factory.learner:Learner.velocity_of", 2),
    "learning": ("flow_factory.algorithms.grpo:GRPO.loss", 2),
    "evaluating": ("flow_factory.evaluation:Evaluator._draw", 1),
}
"""A function, and at which of its calls in an epoch the signal comes."""


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


def told(me: bool) -> Callable[[], None]:
    return partial(os.kill, os.getpid(), signal.SIGTERM) if me else lambda: None


def assert_ends_as(run: Path, unbroken: Path) -> None:
    ended, wanted = (dict(tensors(folder / "checkpoints" / "epoch_2")) for folder in (run, unbroken))
    assert ended.keys() == wanted.keys() and [k for k in wanted if not torch.equal(ended[k], wanted[k])] == []
    assert logged(run) == logged(unbroken), "no step is missing, doubled or different"


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    run = tiny(folder, *KEYS)
    run()
    return run.folder


@pytest.mark.parametrize("place", [p if p in ("drawing", "learning") else pytest.param(p, marks=pytest.mark.exhaustive) for p in PLACES])
def test_a_run_that_is_stopped_anywhere_goes_on_to_the_bit(tmp_path: Path, unbroken: Path, place: str) -> None:
    run = tiny(tmp_path, *KEYS)
    with trapped(*PLACES[place], told(True)), pytest.raises(Interrupted, match="SIGTERM"):
        run()
    assert [p.name for p in (run.folder / "checkpoints").iterdir()] == ["epoch_0"]
    tiny(tmp_path, *KEYS, "model.resume_path=auto")()
    assert_ends_as(run.folder, unbroken)


def test_after_the_first_step_the_epoch_is_learnt_to_its_end(tmp_path: Path, unbroken: Path) -> None:
    run = tiny(tmp_path, *KEYS)
    steps = run.trainer.plan.optimiser_steps_per_epoch
    with trapped("flow_factory.learner:Learner.update", 2, told(True)), pytest.raises(Interrupted, match="SIGTERM"):
        run()
    assert steps > 1 and run.trainer.progress.updates == steps
    assert (run.folder / "checkpoints" / "epoch_1" / "state").is_dir()


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
            said[place] = [str(error), len(first.trainer.roller.drawn())]
        again = run(name, "model.resume_path=auto")
        said[place].append(len(again.trainer.roller.drawn()))
        again()
    Path(f"said.{rank}.json").write_text(json.dumps(said))


ENGINES = {
    "ddp": (),
    "fsdp2": (f"config_file={ROOT}/examples/launch/fsdp2.yaml",),
    "zero3": (f"config_file={ROOT}/examples/launch/deepspeed_zero3.yaml",),
}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", *(pytest.param(e, marks=pytest.mark.exhaustive) for e in ("fsdp2", "zero3"))])
def test_a_signal_to_one_process_stops_all_after_the_same_micro_batch(tmp_path: Path, engine: str) -> None:
    write_run(tmp_path)
    side_by_side(2, tmp_path, _stopped, 2, [*PLACES], ENGINES[engine])
    other, it = (json.loads((tmp_path / f"said.{rank}.json").read_text()) for rank in range(2))
    for place in PLACES:
        assert it[place][0] == "SIGTERM" and other[place][1:] == it[place][1:], place
        assert_ends_as(tmp_path / "save" / place.replace(" ", "_"), tmp_path / "save" / "unbroken")
