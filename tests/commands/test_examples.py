"""Every example is made for what it says, and trains a tiny checkpoint of its family into weights that stock diffusers loads."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import cache
from itertools import islice, takewhile
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor

from flow_factory.check import check
from flow_factory.checkpoints.stock import put_weights
from flow_factory.config import OPDConfig, RunConfig, load_config
from flow_factory.config.algorithms import TRAIN_CONFIGS
from flow_factory.config.datasets import datasets_of
from flow_factory.config.engine import MACHINES
from flow_factory.config.few_steps import FewStepConfig
from flow_factory.memory.auto import resolve_auto
from flow_factory.memory.checkpoint import model_of
from flow_factory.memory.fit import memory_lines
from flow_factory.memory.parts import of_machine, peak
from flow_factory.memory.room import ROOM
from flow_factory.models import MODELS
from flow_factory.models.base import ModelAdapter
from flow_factory.models.diffusers import Diffusers
from flow_factory.models.loading import load_pipeline
from flow_factory.train import build
from flow_factory.training.run import Run
from tests.conftest import cells
from tests.models import breadth
from tests.tiny.pipelines import SMALL, saved
from tests.tiny.run import ROOT, logged, trained
from tests.tiny.teachers import taught

ALGORITHMS = {
    "grpo": "GRPO", "grpo-guard": "GRPO-Guard", "dppo": "Flow-DPPO", "nft": "DiffusionNFT", "awm": "AWM",
    "dpo": "DPO", "sft": "SFT", "dgpo": "DGPO", "crd": "CRD", "draft": "DRaFT",
    "diffusion-opd": "DiffusionOPD", "dmd2": "DMD2", "tdm": "TDM", "tdm-r1": "TDM-R1",
}  # fmt: skip
"""What the examples call each `train.trainer_type`."""
EXAMPLES = sorted(path for name in ALGORITHMS for path in (ROOT / "examples" / name.replace("-", "_")).rglob("*.yaml"))
TINY = {
    **dict.fromkeys(("flux2_t2i", "flux2_i2i"), "flux2"), **dict.fromkeys(("flux2_klein_base", "flux2_klein_9b"), "flux2_klein_base"),
    **dict.fromkeys(("sd3_5", "sd3_5_gardo", "sd3_5_nocfg", "sd3_5_tempflow", "sd3_5_two_datasets"), "sd3"),
    **dict.fromkeys(("flux1_flash", "flux1_gardo", "flux1_tempflow"), "flux1"),
    "qwen_image_edit_plus": "qwen_image_edit_2511", "z_image_turbo": "z_image",
    "wan22_t2v": "wan22_a14b_t2v", "wan22_i2v": "wan22_a14b_i2v", "qwen_image_16": "qwen_image",
    **dict.fromkeys(("flux2_t2i_all", "flux2_t2i_all_16"), "flux2"),
    **dict.fromkeys(("wan21_t2v_480p", "wan21_t2v_720p", "wan21_t2v_flash"), "wan21_t2v"),
    "ltx23_t2av": "ltx2_t2av", "ltx23_i2av": "ltx2_i2av",
}  # fmt: skip
"""The tiny checkpoint of an example where it has not the example's name."""


GENERIC = {
    "qwen_image_21": "qwen_image21", "qwen_image_21_edit": "qwen_image21_edit", "hunyuan_video15_t2v": "hunyuan_video15",
    "flux1_fill": "flux_fill", "flux1_control": "flux_control", "wan21_vace": "wan_vace", "longcat_image_edit": "longcat_edit",
    **{name: name for name in ("hunyuan_video15_i2v", "hunyuan_image", "longcat_image", "krea2", "flux2_klein_kv")},
    **{name: name for name in ("kandinsky5_t2i", "kandinsky5_i2i", "kandinsky5_t2v", "kandinsky5_i2v")},
}  # fmt: skip
"""The case of tests/tiny/breadth of an example of the generic adapter's families; `test_breadth.py` runs these cases too."""
NEWER = {"dppo", "draft", "diffusion-opd", "dmd2", "tdm", "tdm-r1", "sft"}
"""Algorithms that turn up with the share that changes."""


def representative() -> set[tuple[str]]:
    """Of each model and of most algorithms one example, LoRA and full by turns."""
    missing = {algorithm.replace("-", "_") for algorithm in {*ALGORITHMS} - NEWER}
    own = [path for path in EXAMPLES if path.stem not in GENERIC]
    missing |= {TINY.get(path.stem, path.stem) for path in own}
    found = set()
    for path in sorted(own, key=lambda p: (len(p.stem) % 2 == 0) == ("lora" in p.parts)):
        if kinds := missing & {path.parts[-3], TINY.get(path.stem, path.stem)}:
            missing -= kinds
            found.add((name_of(path),))
    return found


def name_of(path: Path) -> str:
    return "-".join((*path.parent.parts[-2:], path.stem))


PATHS = {name_of(path): path for path in EXAMPLES}
OTHERS = {(name,) for name in PATHS} - representative()
each_example = pytest.mark.parametrize("path", EXAMPLES, ids=name_of)


@cache
def example(path: Path) -> RunConfig:
    return load_config(path)


# -- what an example says -----------------------------------------------------------------------------------------------------------


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


# -- training -----------------------------------------------------------------------------------------------------------------------


def tiny_model(path: Path, folder: Path) -> tuple[str | Path, dict[str, Any], dict[str, Any]]:
    """(tiny checkpoint, arguments of its calls, keys of its rows) for an example."""
    config, name, case = example(path), TINY.get(path.stem, path.stem), generic(path)
    if case is None:
        call = {**SMALL[name], **({"condition_image_size": 96} if "condition_image_size" in config.train.call else {})}
        return saved(name), call, few_rows(ROOT / datasets_of(config)[0].config.data.dataset_dir, folder / "data")
    call = {key: value for key, value in case.call.items() if key != "true_cfg_scale"}
    checkpoint = breadth.saved(case, folder / "tiny")
    return checkpoint, call, {"data.dataset_dir": str(folder / "tiny" / "data"), "data.columns": case.renamed()}


def small(path: Path, folder: Path) -> list[str]:
    """Command-line overrides that leave the example's model, algorithm, guidance and optimiser, and make all sizes tiny."""
    config, case = example(path), generic(path)
    checkpoint, call, rows = tiny_model(path, folder)
    sizes = {f"{section}.{k}": v for section in ("train", "eval") for k, v in call.items()}
    if config.train.call.get("num_frames") == 1:
        sizes |= {"train.num_frames": 1, "train.height": 32, "train.width": 32}  # 16 would be one token, whose query moves nothing
    students = isinstance(config.train, FewStepConfig)  # evaluated as they are trained
    steps = 3 if config.train.stochastic else 2 if students else 4  # enough for a step in every timestep_range
    reward = "tests.tiny.rewards.Warm" if config.train.trainer_type == "draft" else "jpeg_compressibility"  # one with a gradient
    judged = {"reward_model": reward, "name": "jpeg_compressibility"}
    keys = {
        "num_processes": 1, "config_file": None, "model.context_parallel": 1,
        "model.model_name_or_path": str(checkpoint), "data.cache_dir": f"{folder}/cache",
        "scheduler.sde_steps": None, "scheduler.num_sde_steps": 1 if config.scheduler.step_selection == "branch" else None,
        "scheduler.branches_per_seed": None, "train.num_inference_steps": steps, "eval.num_inference_steps": 2,
        "train.max_epochs": 2, "train.group_size": 2,
        "train.per_device_batch_size": 1 if case is not None and case.name in breadth.ALONE else 2, "train.unique_sample_num_per_epoch": 2,
        "train.learning_rate": 1e-2, "train.ema_update_interval": 1, "eval.eval_freq": 2, "log.logging_backend": "none",
        "log.save_dir": str(folder), "run_name": "run", "rewards": judged if config.train.judged else None,
        "eval_rewards": None if config.train.judged else judged,
    }  # fmt: skip
    if getattr(config.train, "kl_gate_share", None) is not None:
        watched = [
            {"reward_model": "jpeg_incompressibility", "weight": 0},
            {"reward_model": "diversity", "features": "pixels", "weight": 0},
        ]
        keys |= {"rewards": [judged, *watched], "eval_rewards": judged}
    if config.train.given:
        keys |= {"train.gradient_accumulation_steps": 1}
    if isinstance(config.train, OPDConfig):
        keys |= {"train.teachers": [{"path": "teacher", "guidance_scale": config.train.teachers[0].guidance_scale}]}
    if config.data.datasets is not None:  # one of them, which is trained on alone
        keys |= {"data.datasets": None}
    return [f"{k}={json.dumps(v)}" for k, v in {**keys, **sizes, **rows}.items()]


def generic(path: Path) -> breadth.Case | None:
    """The case of an example of the generic adapter's families."""
    return breadth.CASES[GENERIC[path.stem]] if path.stem in GENERIC else None


def few_rows(dataset: Path, folder: Path) -> dict[str, str]:
    """The keys of a data set of the first two rows of each split, with the pictures and videos where they are."""
    folder.mkdir()
    for file in (*dataset.glob("*.txt"), *dataset.glob("*.jsonl")):
        (folder / file.name).write_text("".join(islice(file.open(), 2)))
    return {"data.dataset_dir": str(folder), "data.image_dir": f"{dataset}/images", "data.video_dir": f"{dataset}/videos"}


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


def assert_learned(run: Run, epochs: Sequence[Mapping[str, Any]], before: Mapping[str, Tensor], least: float = 1) -> None:
    """What these epochs logged are numbers, they trained on what was sampled, and every weight has moved.

    Args:
        before: the weights.
        least: the share of them that has to move: some have no gradient, such as those of the text in a last block.
    """
    assert all(math.isfinite(value) for line in epochs for value in line.values())
    sampled_as_trained = 0 if run.context.config.train.stochastic else None  # the forward process replays nothing
    assert [line.get("train/on_policy_error") for line in epochs] == [sampled_as_trained] * len(epochs)
    assert epochs[0]["train/first_update_effect"] > 0
    assert epochs[0].get("train/ties", 0) == 0  # of DPO: samples of equal reward are no pair
    assert sum(not torch.equal(p, before[k]) for k, p in trained(run).items()) >= least * len(before)


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


# -- the tables of the page on models ---------------------------------------------------------------------------------------------------


class Family(NamedTuple):
    """A row of the table."""

    model_type: str
    checkpoints: str
    conditions: str
    examples: dict[str, list[Path]]
    """By finetune_type."""


def families() -> list[Family]:
    rows = table("model.model_type")
    return [Family(name.strip("`"), *words, {"lora": linked(lora), "full": linked(full)}) for name, *words, lora, full in rows]


def table(first: str) -> list[list[str]]:
    """The cells of the page's table whose first column is this key."""
    lines = (ROOT / "guidance" / "models.md").read_text().partition(f"\n| `{first}` |")[2].splitlines()[2:]
    return [line.strip("| ").split(" | ") for line in takewhile(lambda line: line.startswith("|"), lines)]


def linked(cell: str) -> list[Path]:
    return [ROOT / link.removeprefix("../") for link in re.findall(r"\((.*?)\)", cell)]


CONDITIONS = {
    ((0, 0), (0, 0)): "text", ((1, 1), (0, 0)): "text, 1 picture", ((1, 2), (0, 0)): "text, 1 or 2 pictures",
    ((0, 32), (0, 0)): "text, any number of pictures",
    ((0, 32), (0, 8)): "text, pictures, masks, videos", ((0, 10), (0, 0)): "text, up to 10 pictures",
    ((0, 0), (0, 1)): "text, up to 1 video", ((1, 32), (0, 0)): "text, pictures", ((0, 0), (1, 1)): "text, 1 video",
}  # fmt: skip
"""(pictures, videos), at least and at most."""


def shown_to(family: type[ModelAdapter]) -> str:
    return ", ".join([CONDITIONS[family.images, family.videos], *(f"`{name}`" for name in family.needs)])


def test_the_page_has_every_model_what_it_is_shown_and_the_examples_that_train_it() -> None:
    """LoRA and full are ticked by the examples, and those are what the test above trains."""
    rows = families()
    assert [row.model_type for row in rows] == list(MODELS)
    assert [row.conditions for row in rows] == [shown_to(MODELS[row.model_type]) for row in rows]
    places = {path: (row, kind) for row in rows for kind, paths in row.examples.items() for path in paths}
    assert sorted(places) == [path for path in EXAMPLES if example(path).train.trainer_type == "grpo"]
    for path, (row, kind) in places.items():
        assert (example(path).model.model_type, example(path).model.finetune_type) == (row.model_type, kind)
    checkpoints = {row.model_type: re.split(r", |such as ", row.checkpoints) for row in rows}
    for model in (example(path).model for path in EXAMPLES):
        assert model.model_name_or_path.partition("/")[2].removesuffix("-Diffusers") in checkpoints[model.model_type]


def test_the_page_has_every_algorithm_and_all_of_its_examples() -> None:
    rows = {name.strip("`"): {"lora": linked(lora), "full": linked(full)} for name, lora, full in table("train.trainer_type")}
    assert list(rows) == list(TRAIN_CONFIGS) == list(ALGORITHMS)
    assert rows.pop("grpo") == {"lora": [], "full": []}  # the table of models has them
    for name, places in rows.items():
        for kind, paths in places.items():
            assert paths == [
                path for path in EXAMPLES if (example(path).train.trainer_type, example(path).model.finetune_type) == (name, kind)
            ]
