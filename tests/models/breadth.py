"""What the pipelines without an adapter of their own are tried for: the replay of a rollout, whole runs, and the LoRA that they save."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any
from unittest import mock

import diffusers
import pytest
import torch
import yaml
from safetensors.torch import load_file

from flow_factory.checkpoints.lora_file import LORA_FILE
from flow_factory.checkpoints.stock import put_weights
from flow_factory.config import load_config
from flow_factory.data.reader import read_rows
from flow_factory.models import MODELS
from flow_factory.models.base import ModelAdapter
from flow_factory.models.loading import load_adapter, load_pipeline
from flow_factory.models.named import Named
from flow_factory.models.proof import replay_error
from flow_factory.train import build
from flow_factory.training.run import Run
from flow_factory.types import Cond
from tests.tiny.breadth import CASES as CASES
from tests.tiny.breadth import Case as Case
from tests.tiny.run import logged, trained, write_rows

NAMED = {MODELS[name].pipeline.partition(":")[2]: name for name in MODELS if issubclass(MODELS[name], Named)}
"""The pipelines of families that are the generic adapter with defaults and sizes of their own -> the family."""
ALONE = ("wan_vace", "wan_vace_reference", "prx", "prx_pixel", "modular_wan_i2v", "modular_wan22_i2v")
"""Cases whose pipeline draws one sample a call: some say so, such as Wan VACE and Wan's blocks for a picture; PRX is wrong with more."""
EXPERTS = ("wan22_t2v_generic", "modular_wan22", "modular_wan22_i2v")
"""Cases whose pipeline has two transformers, each for a part of the schedule."""
PROMPTS = ("a red circle", "a blue square on the hill", "a red square")
REFUSED = {
    "anyflow": "FlowMapEulerDiscreteScheduler is not a flow-matching scheduler",
    "sana_sprint": "SCMScheduler is not a flow-matching scheduler",
    "skyreels_v2_df": "steps the parts of a sample, such as its frames, by schedulers of their own",
    "ltx2_hdr": "it draws arrays of linear light",
    "chroma_inpaint": "reads guidance_embeds",
    "qwen_layered": "its pictures have an alpha channel",
    "skyreels_v2_df_i2v": "steps the parts of a sample, such as its frames, by schedulers of their own",
    "skyreels_v2_df_v2v": "steps the parts of a sample, such as its frames, by schedulers of their own",
    "easyanimate_control": "calls its encode_prompt with an argument",
    "ltx_long_multi_prompt": "it draws a video in windows",
    "glm_image_edit": "to have 16 channels, but got 1 channels",
    "dreamlite": "it has no transformer",
    "visualcloze": "it has no argument prompt",
    "ltx2_dfr": "it has no argument num_inference_steps",
    "hunyuan_image_refiner": "it adds noise of its own to its picture",
    "modular_ideogram4": "`guidance_schedule` must have length `num_inference_steps`",
}
"""Cases that cannot be trained -> what is said of it."""
AT_THE_START = ("glm_image_edit", "modular_ideogram4")
"""Those whose reason is seen when a row is encoded or drawn; that of the others is seen without weights, by `--check`."""


def type_of(case: Case) -> str:
    """Its `model.model_type`."""
    return NAMED.get(case.pipeline, "diffusers")


@contextmanager
def small(case: Case) -> Iterator[None]:
    """The pipeline's class and module as the case makes them small."""
    kind = getattr(diffusers, case.pipeline)
    init = kind.__init__

    @wraps(init)
    def reduced(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        for name, value in case.attributes.items():
            setattr(self, name, value)

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(kind, "__init__", reduced))
        for name, value in case.constants.items():
            beside, _, constant = name.rpartition(".")
            module = f"{kind.__module__.rpartition('.')[0]}.{beside}" if beside else kind.__module__
            stack.enter_context(mock.patch.object(sys.modules[module], constant, value))
        yield


def saved(case: Case, folder: Path) -> str:
    """The checkpoint and a data set of the case in a folder; the checkpoint's path. It skips the test if diffusers is too old."""
    if (reason := case.missing()) is not None:  # on Python 3.10, see constraints.txt
        pytest.skip(reason)
    place = folder / "checkpoint"
    if not place.exists():
        case.build().save_pretrained(str(place))
        extra = {"negative_prompt": "ugly"} if case.negative else {}
        rows = [case.row(folder / "data", prompt=case.wording.replace("PROMPT", prompt), **extra) for prompt in PROMPTS]
        write_rows(folder / "data" / "train.jsonl", rows[:2])
        write_rows(folder / "data" / "test.jsonl", rows[2:])
    return str(place)


def replayed(case: Case, folder: Path, dtype: str) -> tuple[float, ModelAdapter, Cond]:
    """How far the log-probability of a replay is off, with two samples where the pipeline draws more than one."""
    adapter = load_adapter(saved(case, folder), type_of(case), dtype)
    row = read_rows(folder / "data", "train", columns=case.renamed())[0]
    with torch.no_grad():
        cond = adapter.encode(row, case.call)
    adapter.drop_encoders()
    return replay_error(adapter, cond, case.call, 1 if case.name in ALONE else 2), adapter, cond


def config_of(case: Case, folder: Path, trainer: str) -> Mapping[str, Any]:
    """A run of two epochs."""
    call = dict(case.call)
    size, steps = [call.pop("height"), call.pop("width")], {"num_inference_steps": case.steps}
    shared = {"resolution": size, "per_device_batch_size": 1 if case.name in ALONE else 2, **steps, **call}
    return {
        "mixed_precision": "no",
        "data": {"dataset_dir": str(folder / "data"), "cache_dir": str(folder / "cache"), "columns": case.renamed()},
        "model": {
            "model_name_or_path": saved(case, folder), "model_type": type_of(case), "finetune_type": "lora", "target_modules": "default",
            "lora_rank": 2, "lora_alpha": 2, "target_components": ["transformer", *["transformer_2"] * (case.name in EXPERTS)]},
        "train": {
            "trainer_type": trainer, "max_epochs": 2, "group_size": 2, "unique_sample_num_per_epoch": 2, "gradient_step_per_epoch": 1,
            "learning_rate": 1e-2, **shared} | ({"kl_cfg": 1.0} if trainer == "crd" else {}),
        "eval": {"eval_freq": 1, **shared},
        "log": {"run_name": trainer, "logging_backend": "none", "save_dir": str(folder / "save"), "save_freq": 2},
        "rewards": {"reward_model": "jpeg_compressibility", "name": "size"},
    } | ({"scheduler": {"num_sde_steps": 1}} if trainer == "grpo" else {})  # fmt: skip


def run_of(case: Case, folder: Path, trainer: str, *keys: str) -> Run:
    """A run of the case, ready to start."""
    file = folder / f"{trainer}.yaml"
    file.write_text(yaml.safe_dump(dict(config_of(case, folder, trainer))))
    return build(load_config(file, keys))


def done(case: Case, folder: Path, trainer: str) -> Run:
    """A run of the case, done: a third of the weights at least have moved, and what was trained on is what was sampled."""
    run = run_of(case, folder, trainer)
    before = trained(run)
    run()
    moved = sum(not torch.equal(before[key], weight) for key, weight in trained(run).items())
    assert 3 * moved >= len(before)
    errors = [value for line in logged(folder / "save" / trainer) for key, value in line.items() if "on_policy" in key]
    assert (not run.context.config.train.stochastic or errors) and not any(errors)
    return run


def read_back(run: Run, folder: Path, trainer: str) -> tuple[int, int]:
    """How many tensors of the saved LoRA the stock pipeline has after it has loaded the checkpoint, and how many there are."""
    (file,) = sorted((folder / "save" / trainer).rglob(LORA_FILE))[-1:]
    name, *_ = run.context.adapter.field.bare
    pipe = load_pipeline(str(folder / "checkpoint"), type(run.context.adapter), torch.float32)
    put_weights(pipe, file.parent, [name])
    there = [p for key, p in getattr(pipe, name).named_parameters() if ".lora_" in key]
    written = [tensor for tensor in load_file(file).values() if tensor.ndim > 1]
    return sum(any(torch.equal(p, tensor) for p in there) for tensor in written), len(written)
