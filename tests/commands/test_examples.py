"""Every example is made for what it says, and trains a tiny checkpoint of its family into weights that stock diffusers loads."""

import math
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor

from flow_factory.check import check
from flow_factory.checkpoints.stock import put_weights
from flow_factory.config import load_config
from flow_factory.config.engine import MACHINES
from flow_factory.memory.auto import resolve_auto
from flow_factory.memory.checkpoint import model_of
from flow_factory.memory.fit import memory_lines
from flow_factory.memory.parts import of_machine, peak
from flow_factory.memory.room import ROOM
from flow_factory.models.diffusers import Diffusers
from flow_factory.models.loading import load_pipeline
from flow_factory.train import build
from flow_factory.training.run import Run
from tests.commands.examples import ALGORITHMS, OTHERS, PATHS, assert_learned, example, generic, small
from tests.conftest import cells
from tests.models import breadth
from tests.tiny.run import ROOT, logged, trained
from tests.tiny.teachers import taught

# -- what an example says -------------------------------------------------------------------------------------------------------------


@cells("name", [(name,) for name in PATHS], OTHERS)
def test_an_example_is_for_gpus_of_80_gb_and_every_key_in_it_has_an_effect(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Checkpoints are not here: the check says what would be downloaded."""
    path = PATHS[name]
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config, report = example(path), check(taught(example(path), tmp_path))
    assert config.num_processes == (16 if path.stem.endswith("_16") else 8) and not config.notices
    assert not config.log.save_model_only, "what a run that stops needs to go on"
    assert all(part in report for part in ("data:", "rewards:", "checkpoint:", "plan:", "memory of one process:"))
    assert f"{config.model.model_name_or_path}: not on this machine; from the hub it would be downloaded" in report
    assert "on a GPU it needs" in report or config.model.model_type == "diffusers", report
    head = path.read_text().partition("num_processes:")[0]
    first, name = head.splitlines()[0], config.train.trainer_type
    assert f" {config.num_processes} GPUs of 80 GB" in first and f" by {ALGORITHMS[name]} on " in first
    assert ("LoRA" in first) == (config.model.finetune_type == "lora")
    assert f"`ff-train {path.relative_to(ROOT)} --check`" in head
    assert path.parent.parts[-2:] == (name.replace("-", "_"), config.model.finetune_type)


QUICK = sorted((ROOT / "examples").glob("quickstart*/*.yaml")) + [ROOT / "examples/quickstart.yaml"]
LARGE = (
    "grpo-full-flux2_t2i_all", "grpo-full-flux2_t2i_all_16", "grpo-full-qwen_image", "grpo-full-qwen_image_16",
    "grpo-lora-wan21_t2v_480p", "grpo-lora-wan21_t2v_720p",
)  # fmt: skip
"""Examples that are large: they fit eight GPUs of 80 GB and a machine with 1 TB of main memory."""


@pytest.mark.parametrize("path", QUICK, ids=lambda p: p.stem)
def test_a_quick_start_saves_what_it_needs_to_go_on(path: Path) -> None:
    assert not example(path).log.save_model_only


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_a_large_example_fits_its_gpus_and_machines(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the estimate of its plan, from published sizes, on the meta device. It stands in a table of guidance/scale.md."""
    monkeypatch.chdir(ROOT)
    config = example(PATHS[name])
    if config.num_processes == 16:
        monkeypatch.setenv(MACHINES, "2")
    model = model_of(config)
    assert model is not None
    parts = model.parts(resolve_auto(config, model, 80)[0])
    assert peak(parts) < ROOM * 80 and of_machine(parts, 8) < 1000
    assert memory_lines(config, 80)[1]
    page = (ROOT / "guidance" / "scale.md").read_text().splitlines()
    (row,) = [line for line in page if f"(../{PATHS[name].relative_to(ROOT)})" in line]
    assert f"| {config.num_processes} | {peak(parts):.1f} |" in row


# -- training -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@cells("name", [(name,) for name in PATHS], OTHERS)
def test_an_example_trains_a_tiny_checkpoint_into_weights_that_diffusers_loads(name: str, tmp_path: Path) -> None:
    path = PATHS[name]
    AcceleratorState._reset_state(reset_partial_state=True)
    with nullcontext() if generic(path) is None else breadth.small(generic(path)):
        run = build(taught(load_config(path, small(path, tmp_path)), tmp_path))
        before = trained(run)
        run()
        there = weights(loaded(run), run)
    lines = logged(run.folder, clock=True)
    assert [line["step"] for line in lines] == [0, 1, 2, 2]
    assert all(math.isfinite(value) for line in (lines[0], lines[3]) for value in line.values())
    assert {"eval/reward_mean", "eval/reward_jpeg_compressibility_mean"} <= lines[0].keys() & lines[3].keys()
    assert_learned(run, lines[1:3], before, least=1 if generic(path) is None else 1 / 3)
    with run.context.store.use(run.context.store.reported):
        reported = {k: p for k, p in trained(run).items() if k in run.context.store.networks["policy"]}
    assert all(torch.equal(p, there[k]) for k, p in reported.items())


def loaded(run: Run) -> Any:
    """The stock pipeline with the run's checkpoint, as the README says."""
    model, folder = run.context.config.model, run.checkpoint()
    pipe = load_pipeline(model.model_name_or_path, type(run.context.adapter), torch.float32)
    if isinstance(run.context.adapter, Diffusers):  # not all of them load a LoRA themselves
        put_weights(pipe, folder, model.target_components)
        return pipe
    for name in model.target_components:
        if model.finetune_type == "full":
            setattr(pipe, name, type(getattr(pipe, name)).from_pretrained(folder / name))
        elif name == "transformer":
            pipe.load_lora_weights(folder)
        else:
            pipe.load_lora_weights(folder / name, load_into_transformer_2=True)
    return pipe


def weights(pipe: Any, run: Run) -> dict[str, Tensor]:
    """Under the policy's names: diffusers numbers the LoRAs that it loads."""
    components = {name: getattr(pipe, name) for name in run.context.config.model.target_components}
    there = {f"{name}.{k}": p for name, module in components.items() for k, p in module.named_parameters()}
    return {re.sub(r"\.default_\d+\.", ".default.", k): p for k, p in there.items()}
