"""The examples, and what makes each of them small."""

import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flow_factory.config import OPDConfig, RunConfig, load_config
from flow_factory.config.datasets import datasets_of
from flow_factory.config.few_steps import FewStepConfig
from flow_factory.training.run import Run
from tests.models import breadth
from tests.tiny.pipelines import SMALL, saved
from tests.tiny.run import ROOT, trained

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


@cache
def example(path: Path) -> RunConfig:
    return load_config(path)


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
