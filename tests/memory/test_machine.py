"""`--check` about a machine: main memory of its own and shared, and what checkpoints take of the disk."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from flow_factory.check import report
from flow_factory.config import load_config
from flow_factory.config.engine import MACHINES
from flow_factory.memory import machine
from flow_factory.memory.checkpoint import model_of
from flow_factory.memory.machine import PROGRAM, checkpoint_sizes, disk_lines, main_memory_lines, written
from flow_factory.memory.parts import Part
from tests.tiny.run import ROOT, tiny, write_run

PARTS = [
    Part("waits", 10.0, host=True), Part("is cast", 2.0, "encoding", host=True), Part("on the device", 70.0),
    Part("files", 30.0, "encoding", host=True, shared=True),
]  # fmt: skip


@pytest.mark.parametrize(("has", "said"), [(200, None), (100, "the files do not fit in it"), (80, "it does NOT fit")])
def test_processes_of_a_machine_have_their_own_and_share_files(has: float, said: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: SimpleNamespace(total=has * 1e9))
    monkeypatch.setenv(MACHINES, "2")
    config = load_config(ROOT / "examples/grpo/lora/flux1.yaml", ["num_processes=16", "config_file=null"])
    lines = [line.strip() for line in main_memory_lines(config, PARTS, requested=True)]
    assert f"{8 * (10 + PROGRAM):.2f} GB  of a machine's main memory for 8 processes, and 30.00 GB that they share" in lines[4]
    assert lines[2] == "30.00 GB  of main memory, once for all processes: files (encoding)"
    assert len(lines) == 5 + (said is not None) and (said is None or said in lines[5])
    assert len(main_memory_lines(config, PARTS, requested=False)) == 5, "another machine is not known"


@pytest.mark.parametrize("keys", [
    ("model.finetune_type=lora",),
    ("model.finetune_type=full", "mixed_precision=bf16", "model.master_weight_dtype=fp32", "model.target_modules=attn.to_q"),
    ("model.finetune_type=full", "train.kl_beta=0.1", "train.ema_decay=0"),
], ids=" ".join)  # fmt: skip
def test_a_checkpoint_takes_what_a_check_says(keys: tuple[str, ...], tmp_path: Path) -> None:
    run = tiny(tmp_path, *keys, "log.save_model_only=false", "eval.eval_freq=0")
    run.context.engine.warm()
    config = run.context.config
    saver, folder = run.saver, tmp_path / "saved" / "epoch_1"
    saver.save(folder, run.trainer.state())
    saver.wait()
    sizes = {path: path.stat().st_size for path in folder.rglob("*.safetensors")}
    of_state = sum(size for path, size in sizes.items() if "state" in path.parts)
    model = model_of(config)
    assert model is not None
    said = checkpoint_sizes(config, model.weights(config))
    assert [1e9 * gb for gb in said] == pytest.approx([sum(sizes.values()) - of_state, of_state], rel=0.25)  # headers of tiny tensors


@pytest.mark.parametrize(("keys", "many"), [
    (("train.max_epochs=25", "log.save_freq=10", "log.keep_last_n=null"), 3), (("train.max_epochs=25", "log.save_freq=0"), 1),
    (("train.max_epochs=25", "log.save_freq=5", "log.keep_last_n=2"), 3), (("train.max_epochs=null", "log.keep_last_n=2"), 3),
    (("train.max_epochs=null", "log.keep_last_n=null"), None),
    (("train.max_epochs=25", "log.save_freq=0", "log.save_minutes=30", "log.keep_last_n=2"), 3),
    (("train.max_epochs=25", "log.save_freq=10", "log.save_minutes=30", "log.keep_last_n=null"), 25),
    (("train.max_epochs=25", "log.save_freq=5", "log.keep_best=eval/reward_mean", "log.keep_last_n=2"), 4),
    (("train.max_epochs=25", "log.save_freq=0", "log.keep_best=eval/reward_mean", "log.keep_last_n=null", "eval.eval_freq=5"), 6),
])  # fmt: skip
def test_the_one_that_is_written_is_there_beside_those_that_stay(keys: tuple[str, ...], many: int | None) -> None:
    assert written(load_config(ROOT / "examples/grpo/lora/flux1.yaml", keys)) == many


def test_a_check_warns_of_a_disk_that_is_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(write_run(tmp_path), ["log.save_model_only=false", "log.keep_last_n=1"])
    lines = [line.strip() for line in report(config)[0].splitlines() if line.strip().startswith("checkpoints: ") and "free" in line]
    assert len(lines) == 1 and "of it the training state" in lines[0] and "NOT enough" not in lines[0]
    monkeypatch.setattr(machine, "free_space", lambda folder: 1000)
    model = model_of(config)
    assert model is not None and "which is NOT enough: lower log.keep_last_n" in disk_lines(config, model.weights(config))[0]
