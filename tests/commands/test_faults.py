"""What breaks is said in one line, all processes end, and what was saved stays whole: a run goes on to the bit.

`guidance/faults.md` says so to users.
"""

import re
import shutil
import signal
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from flow_factory.checkpoints.lora_file import LORA_FILE
from flow_factory.checkpoints.state_files import contents
from flow_factory.config import TrainConfig
from flow_factory.config.engine import EngineSettings
from flow_factory.distributed.engines import Engine
from flow_factory.utils.errors import GradientError, UserError
from tests.conftest import cells, chosen
from tests.runs.test_resume import SETTINGS as EVALUATED
from tests.runs.test_resume import assert_same
from tests.tiny.faults import poisoned
from tests.tiny.patience import none_left
from tests.tiny.run import LOST, ROOT, ff_train, read_state, tiny, write_run
from tests.tiny.several import several

pytestmark = pytest.mark.slow

ENGINES = {"ddp": "multi_gpu", "fsdp2": "fsdp2", "zero2": "deepspeed_zero2", "zero3": "deepspeed_zero3"}
SETTINGS = (*EVALUATED, "eval.eval_freq=0")


@dataclass
class Ended:
    """What became of a run that a fault happened to."""

    code: int
    said: str
    folder: Path
    kept: list[str]
    """The checkpoints that had their names."""

    @property
    def complaints(self) -> list[str]:
        return re.findall("error: .*", self.said)


def on(engine: str) -> str:
    return f"config_file={ROOT}/examples/launch/{ENGINES[engine]}.yaml"


def faulty(folder: Path, name: str, fault: str, *keys: str) -> Ended:
    """A run with a fault: it ends, none of its processes is left, and no trace of calls is shown."""
    if not (folder / "tiny.yaml").exists():
        write_run(folder)
    given = (*SETTINGS, "rewards.reward_model=tests.tiny.faults.Faulty", f"run_name={name}", *keys)
    done = ff_train("tiny.yaml", *given, cwd=folder, FAULT=fault)
    assert "Traceback" not in done.stderr, done.stderr
    none_left(folder)
    run = folder / "save" / name
    return Ended(done.returncode, done.stderr, run, sorted(p.name for p in (run / "checkpoints").glob("epoch_*")))


# -- a process dies, or is told to end ----------------------------------------------------------------------------------------------

# In the third of four epochs: each has, on a process, two samplings, two optimiser steps and one file of the training state.
PLACES = {
    "rollout": "1 flow_factory.models.base:ModelAdapter.sample 6 kill",
    "step": "1 torch.optim:AdamW.step 5 kill",
    "save": "1 os:fsync 3 kill",
}
KILLED = {f"ddp_{place}": ("ddp", fault) for place, fault in PLACES.items()} | {"fsdp2_save": ("fsdp2", PLACES["save"])}
TOLD = "0 os:fsync 8 terminate_launcher"
"""While the second checkpoint is written."""


@pytest.fixture(scope="module")
def broken(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """Runs that a fault ended, by engine and place. They have gone on since, and beside them is one of each engine that never stopped."""
    folder = tmp_path_factory.mktemp("broken")
    cases = {name: KILLED[name] for (name,) in chosen(request, "name")} | {"ddp_told": ("ddp", TOLD)}
    ended = {name: faulty(folder, name, fault, on(engine), "num_processes=2") for name, (engine, fault) in cases.items()}
    resumed = {name: [*SETTINGS, on(engine), f"model.resume_path={folder}/save/{name}"] for name, (engine, _) in cases.items()}
    several(folder, 2, {engine: [*SETTINGS, on(engine)] for engine in ("ddp", "fsdp2")} | resumed)
    return ended


@cells("name", [(name,) for name in KILLED], {("ddp_step",), ("ddp_save",)})
def test_a_process_that_is_killed_ends_all_and_the_run_goes_on_to_the_bit(broken: dict[str, Ended], name: str) -> None:
    run, (engine, _, place) = broken[name], name.partition("_")
    assert run.code == 128 + signal.SIGKILL
    *before, last = run.complaints
    at = {"rollout": "the rollout phase", "step": "the optimise phase", "save": ".*"}[place]
    assert re.fullmatch(f"error: process 1 of 2 was killed by SIGKILL, at: {at}", last)
    assert len(before) <= 1 and all(re.fullmatch(LOST, line) for line in before), "the launcher may end a process before it has noticed"
    assert run.kept == ["epoch_1", "epoch_2"] or (place != "save" and run.kept == ["epoch_1"]), "the second may still have been written"
    assert_same(run.folder, run.folder.parent / engine)


def test_sigterm_while_a_checkpoint_is_written_ends_when_it_and_the_state_are(broken: dict[str, Ended]) -> None:
    run = broken["ddp_told"]
    assert run.code == 130
    (epoch,) = re.findall(r"(?:SIGTERM|another process was interrupted): stopped before epoch (\d)", run.said)
    assert run.complaints == [] and run.kept == [f"epoch_{k}" for k in range(1, int(epoch))]
    assert_same(run.folder, run.folder.parent / "ddp")


def test_a_second_ctrl_c_ends_at_once_but_for_the_checkpoint_that_is_written(tmp_path: Path) -> None:
    run = faulty(tmp_path, "run", "0 flow_factory.training.saver:write 2 interrupt_twice")
    assert run.code == 130 and "stopped before epoch" not in run.said
    assert run.kept == ["epoch_1", "epoch_2"]
    assert contents(run.folder / "checkpoints" / "epoch_2")[1].epoch == 2


# -- the disk is full ---------------------------------------------------------------------------------------------------------------

TOO_LARGE = r"(OSError: \[Errno 27\] File too large|SafetensorError: .*File too large \(os error 27\))"


@pytest.mark.parametrize(
    ("where", "keys"),
    [
        ("0 flow_factory.training.saver:write", ()),
        ("0 flow_factory.training.saver:save_model", ()),
        ("1 flow_factory.training.saver:write", ("num_processes=2", on("fsdp2"))),
        pytest.param("0 flow_factory.training.saver:save_model", ("num_processes=2", on("ddp")), marks=pytest.mark.exhaustive),
    ],
    ids=["state", "weights", "state of the second process", "weights of two processes"],
)
def test_a_disk_that_fills_up_during_a_save_leaves_the_checkpoint_before(tmp_path: Path, where: str, keys: tuple[str, ...]) -> None:
    run = faulty(tmp_path, "run", f"{where} 2 full", *keys)
    assert run.code == 1
    folder = run.folder / "checkpoints"
    said = rf"error: {folder}/\S+ cannot be written: {TOO_LARGE}; the last complete checkpoint is {folder}/epoch_1"
    assert re.fullmatch(said, run.complaints[0]), run.said
    assert len(run.complaints) == (2 if keys else 1), "the launcher says which process it was"
    assert run.kept == ["epoch_1"] and contents(folder / "epoch_1")[1].epoch == 1
    assert all(t.isfinite().all() for t in read_state(folder / "epoch_1").values())


def test_a_disk_that_fills_up_elsewhere_is_one_line(tmp_path: Path) -> None:
    """Here it is the log; where pictures are drawn it ends nothing."""
    run = faulty(tmp_path, "run", "0 flow_factory.reporting.metrics:MetricsFile.log 4 brimful", "eval.eval_freq=3", "log.save_freq=2")
    assert run.code == 1
    (said,) = run.complaints
    assert re.fullmatch(r"error: .*File too large.* \(a write to \S+/save or \S+/cache\); resume from the last complete checkpoint", said)
    assert run.kept == ["epoch_2"]


# -- a checkpoint is damaged --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with the checkpoints of two epochs."""
    run = tiny(tmp_path_factory.mktemp("saved"), "log.save_model_only=false", "log.save_freq=1", "eval.eval_freq=0")
    run()
    return run.folder


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


DAMAGES: dict[str, Callable[[Path], object]] = {
    "half of the tensors": lambda state: halve(state / "part-00000.safetensors"),
    "no tensors": lambda state: (state / "part-00000.safetensors").unlink(),
    "half of their names": lambda state: halve(state / "index.json"),
    "no names": lambda state: (state / "index.json").unlink(),
    "half of the progress": lambda state: halve(state / "progress.json"),
    "no progress": lambda state: (state / "progress.json").unlink(),
    "nothing": lambda state: [p.unlink() for p in state.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_with_a_whole_one_and_nothing_changes(tmp_path: Path, saved: Path, damage: str) -> None:
    run = tmp_path / "save" / ("my run" if damage == "nothing" else "run")
    shutil.copytree(saved, run)
    DAMAGES[damage](run / "checkpoints" / "epoch_2" / "state")
    before = everything(run)
    path = "auto" if damage == "no progress" else run
    with pytest.raises(UserError) as error:
        tiny(tmp_path, "log.save_model_only=false", f"model.resume_path={path}")
    whole = f"{run}/checkpoints/epoch_1"
    advice = quote(f"model.resume_path={whole}")
    assert re.fullmatch(rf"{run}/checkpoints/epoch_2 is damaged: \w+: .*; go on from a whole one: {advice}", str(error.value))
    assert everything(run) == before
    assert tiny(tmp_path, "log.save_model_only=false", f"model.resume_path={whole}").context.progress.epoch == 1


def test_where_no_checkpoint_is_whole_none_is_named(tmp_path: Path, saved: Path) -> None:
    run = tmp_path / "save" / "run"
    shutil.copytree(saved, run)
    for k, damage in enumerate(("half of the tensors", "no names"), start=1):
        DAMAGES[damage](run / "checkpoints" / f"epoch_{k}" / "state")
    with pytest.raises(UserError, match="epoch_2 is damaged: .*; no other in .*/checkpoints has a whole training state"):
        tiny(tmp_path, "log.save_model_only=false", f"model.resume_path={run}")


def test_damaged_weights_are_refused(tmp_path: Path, saved: Path) -> None:
    shutil.copytree(saved / "checkpoints" / "epoch_2", tmp_path / "epoch_2")
    halve(tmp_path / "epoch_2" / LORA_FILE)
    with pytest.raises(UserError, match=f"{tmp_path}/epoch_2/{LORA_FILE} is damaged: "):
        tiny(tmp_path, f"model.resume_path={tmp_path}/epoch_2", "model.resume_type=lora")


# -- a gradient, and memory ---------------------------------------------------------------------------------------------------------


def test_a_gradient_that_is_no_number_is_not_stepped(tmp_path: Path) -> None:
    """It comes from one process of two; both find it, and neither moves a weight."""
    for engine, each in several(tmp_path, 2, {engine: [on(engine)] for engine in ENGINES}, do=poisoned).items():
        for rank in each:
            assert re.match(r"epoch 1, update 1: the norm of the gradient is (nan|inf), .*train.learning_rate", rank["said"]), engine
            assert rank["moved"] == 0, engine


def test_a_loss_scale_may_halve_until_it_fits_and_no_further() -> None:
    """fp16 on plain data parallel: an infinite gradient is the scale's, down to a scale of 1."""
    layer, accelerator = nn.Linear(2, 2), Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    engine = Engine(EngineSettings(), accelerator, 1.0)
    engine.policy = SimpleNamespace(components=[layer], trained=lambda *_: dict(layer.named_parameters()))  # type: ignore[assignment]
    engine.optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    engine.stepper = accelerator.prepare(engine.optimizer)
    before = layer.weight.detach().clone()
    for scale in (4.0, 2.0, 1.0, 0.5):
        assert accelerator.scaler.get_scale() == scale
        engine.backward(layer(torch.full((1, 2), torch.inf)).sum())
        with pytest.raises(GradientError, match="inf|nan") if scale < 1 else nullcontext():
            engine.step()
    assert torch.equal(layer.weight, before)


def test_out_of_memory_names_the_keys_that_need_less(tmp_path: Path) -> None:
    run = faulty(tmp_path, "run", "1 flow_factory.models.base:ModelAdapter.velocity 4 out_of_memory", "num_processes=2", on("ddp"))
    assert run.code == 1
    said, launcher = run.complaints
    assert said.startswith("error: CUDA out of memory. Tried to allocate 2.00 GiB. To need less: a smaller train.per_device_batch_size")
    assert launcher == "error: process 1 of 2 stopped with exit code 1; its message is above"
    for key in re.findall(r"train\.(\w+)", said):
        assert key in TrainConfig.model_fields
    assert all((ROOT / file).is_file() for file in re.findall(r"examples/\S+?\.yaml", said))
