"""A run that was stopped anywhere and goes on ends where the run that never stopped ends, to the bit."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from flow_factory.checkpoints.checkpoint import CheckpointError
from flow_factory.checkpoints.state_files import contents
from flow_factory.config import ConfigError
from flow_factory.runs import resume
from flow_factory.runs.resume import Choice, see
from flow_factory.training.run import Run
from flow_factory.utils.errors import UserError
from tests.tiny.forked import forked
from tests.tiny.run import logged, read_state, tiny, trained, write_run
from tests.tiny.several import several

SETTINGS = (
    "train.max_epochs=4", "train.lr_scheduler=cosine", "train.kl_beta=0.1", "log.save_freq=1", "log.save_model_only=false",
    "eval.eval_freq=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run that never stopped, with its cache beside it."""
    folder = tmp_path_factory.mktemp("unbroken")
    write_run(folder)
    done = forked("tiny.yaml", *SETTINGS, cwd=folder)
    assert done.returncode == 0, done.stdout
    return folder / "save" / "run"


def tensors(checkpoint: Path) -> Iterator[tuple[str, Tensor]]:
    """Everything that a checkpoint holds: saved weights, live weights, average, optimiser."""
    for file in sorted(checkpoint.rglob("*.safetensors")):
        yield from ((f"{file.name}/{k}", t) for k, t in load_file(file).items())
    yield from read_state(checkpoint).items()


def assert_same(run: Path, unbroken: Path, since: int = 0) -> None:
    ended, wanted = (dict(tensors(folder / "checkpoints" / "epoch_4")) for folder in (run, unbroken))
    assert set(ended) == set(wanted)
    assert [k for k in wanted if not torch.equal(ended[k], wanted[k])] == []
    one, other = (contents(folder / "checkpoints" / "epoch_4")[1] for folder in (run, unbroken))
    assert (one.epoch, one.updates, one.run["must"]) == (other.epoch, other.updates, other.run["must"])
    assert logged(run) == [line for line in logged(unbroken) if line["step"] >= since], "no step is missing, doubled or different"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("killed", "code", "left"),
    [  # an epoch has 4 samplings, 4 + 4 velocities (one more in the first), and a checkpoint of 6 calls of fsync
        ("flow_factory.models.base:ModelAdapter.sample 10 SIGKILL", -9, 2),
        ("flow_factory.models.base:ModelAdapter.velocity 24 SIGKILL", -9, 2),
        ("os:fsync 15 SIGKILL", -9, 2),
        ("flow_factory.models.base:ModelAdapter.sample 2 SIGTERM", 130, 0),
        ("flow_factory.models.base:ModelAdapter.velocity 24 SIGTERM", 130, 3),
        ("flow_factory.models.base:ModelAdapter.evaluate 3 SIGINT", 130, 2),
    ],
)
def test_a_run_that_was_stopped_goes_on_as_if_it_never_was(tmp_path: Path, unbroken: Path, killed: str, code: int, left: int) -> None:
    write_run(tmp_path)
    done = forked("tiny.yaml", *SETTINGS, cwd=tmp_path, killed=killed)
    assert done.returncode == code, done.stdout
    run = tmp_path / "save" / "run"
    last = max(int(p.name.removeprefix("epoch_")) for p in (run / "checkpoints").glob("epoch_*"))
    assert last == left or (code == -9 and last == left - 1), "a checkpoint is written beside the next epoch"
    done = forked("tiny.yaml", *SETTINGS, "model.resume_path=save/run", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert_same(run, unbroken)
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == [f"epoch_{k}" for k in range(min(left, 1), 5)]


@pytest.mark.slow
def test_a_run_goes_on_in_another_folder(tmp_path: Path, unbroken: Path) -> None:
    write_run(tmp_path)
    before = (unbroken / "metrics.jsonl").read_bytes()
    resume = f"model.resume_path={unbroken / 'checkpoints' / 'epoch_2'}"
    done = forked("tiny.yaml", *SETTINGS, resume, "run_name=other", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert_same(tmp_path / "save" / "other", unbroken, since=3)
    assert (unbroken / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_sigterm_saves_the_state_even_where_only_weights_are_kept(tmp_path: Path, unbroken: Path) -> None:
    write_run(tmp_path)
    settings = (*SETTINGS, "log.save_freq=0", "log.save_model_only=true")
    done = forked("tiny.yaml", *settings, cwd=tmp_path, killed="flow_factory.models.base:ModelAdapter.sample 7 SIGTERM")
    assert done.returncode == 130, done.stdout
    done = forked("tiny.yaml", *SETTINGS, "model.resume_path=save/run", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert_same(tmp_path / "save" / "run", unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["null", "state", "lora"])
def test_what_is_resumed_is_what_was_saved(tmp_path: Path, kind: str) -> None:
    """The state by itself, or only its weights, in which case the run is a new one that starts from the average."""
    first = tiny(tmp_path, "log.save_model_only=false", "train.learning_rate=1e-2")
    first()
    second = tiny(tmp_path, "run_name=second", f"model.resume_path={first.folder}", f"model.resume_type={kind}", "train.max_epochs=3")
    goes_on = kind != "lora"
    assert second.context.progress.epoch == 2 * goes_on
    want = trained(first) if goes_on else dict(zip(trained(first), first.context.store.copies["ema"], strict=True))
    assert all(torch.equal(p, want[k]) for k, p in trained(second).items())
    assert [line["step"] for line in logged(second.folder)] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides", [("model.finetune_type=full", "model.target_modules=all", "model.master_weight_dtype=fp32"), ("train.ema_decay=0",)]
)
def test_weights_alone_start_a_new_run(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    settings = (*overrides, "train.ema_decay=0", "train.learning_rate=1e-2")
    first = tiny(tmp_path, *settings)
    first()
    second = tiny(tmp_path, *settings, "run_name=second", f"model.resume_path={first.folder}")
    assert second.context.progress.epoch == 0
    assert all(torch.equal(p, trained(second)[k]) for k, p in trained(first).items())


def test_weights_alone_do_not_go_on_in_the_folder_of_their_run(tmp_path: Path) -> None:
    """It would begin again at epoch 0 and write over what is there."""
    first = tiny(tmp_path)
    first()
    before = (first.folder / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match="no training state"):
        tiny(tmp_path, f"model.resume_path={first.folder}")
    assert (first.folder / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model.resume_type=state",), "has no training state"),
        (("model.resume_type=full",), "full weights do not fit model.finetune_type: lora"),
        (("model.finetune_type=full", "model.master_weight_dtype=fp32"), "holds lora weights, but model.finetune_type is full"),
        (
            ("model.target_modules=[attn.to_q]",),
            "target_modules leaves out layers that it is of: single_transformer_blocks.0.attn.to_k, ",
        ),
        (("model.lora_rank=4",), "does not fit: it has rank 8, and this run's LoRA 4; write model.lora_rank: 8 or more"),
        (("model.resume_path=data",), "data is not a checkpoint .test.jsonl, train.jsonl.; one holds state/"),
        (("model.resume_path=gone",), "gone is not a checkpoint .no such folder or file."),
    ],
)
def test_what_cannot_be_resumed_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    first = tiny(tmp_path)
    first.save(state=False)
    first.saver.wait()
    with pytest.raises((ConfigError, UserError), match=message):
        tiny(tmp_path, "run_name=second", "model.resume_path=save/run", *overrides)


OTHERS = {
    "train.ema_decay=0": "does not fit this run: the saved copies are",
    "model.target_modules=[attn.to_q]": "does not fit this run: first at",
    "model.lora_rank=4": "belongs to another run: model.lora_rank was 8, and is 4; resume_type: lora starts from its weights",
    "model.lora_alpha=4": "belongs to another run: model.lora_alpha was 16, and is 4",
    "train.trainer_type=awm": "belongs to another run: train.trainer_type was .grpo., and is .awm.",
}


def test_a_state_of_another_kind_of_run_is_refused(tmp_path: Path) -> None:
    first = tiny(tmp_path)
    first.save(state=True)
    first.saver.wait()
    for override, message in OTHERS.items():
        with pytest.raises(UserError, match=message):
            tiny(tmp_path, "run_name=second", f"model.resume_path={first.folder}", override)
    assert not (first.folder.parent / "second").exists()


# -- one process chooses ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_process_that_sees_an_older_state_of_the_folder_goes_on_from_where_all_do(tmp_path: Path) -> None:
    keys = ("log.save_freq=1", "log.save_model_only=false", "eval.eval_freq=0")
    runs = {"first": [*keys, "train.max_epochs=2"], "second": [*keys, "train.max_epochs=3", "model.resume_path=save/first"]}
    said = several(tmp_path, 2, runs, do=from_where, begin=stale)
    assert [process["epoch"] for process in said["second"]] == [2, 2]


def stale(rank: int) -> None:
    """As of a network directory whose last checkpoint another machine has just written: for process 1 there is only the first."""
    if rank == 1:
        resume.newest = lambda path: path / "checkpoints" / "epoch_1"
        resume.newest_state = lambda folder: folder / "checkpoints" / "epoch_1"


def from_where(run: Run) -> dict[str, Any]:
    """The epoch after which this process goes on."""
    epoch = run.context.progress.epoch
    run()
    return {"epoch": epoch}


def test_what_the_main_process_has_chosen_is_waited_for(tmp_path: Path) -> None:
    late = tmp_path / "epoch_2"
    with pytest.raises(CheckpointError, match="epoch_2: the main process chose it, but this process did not see it for 0.1 s; machines"):
        see(Choice(late, True), 0.1)
    see(Choice(late, False), 0.1)  # nobody sees it: that is said where it is read
    threading.Timer(0.2, late.mkdir).start()
    see(Choice(late, True))
    assert late.is_dir()
