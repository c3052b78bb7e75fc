"""What is evaluated is what a user of diffusers gets: the stock pipeline, from raw prompts and pictures, without us and with our LoRA."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from torch import Tensor

from flow_factory.checkpoints.model_files import load_model, save_model
from flow_factory.config.engine import EngineSettings
from flow_factory.core.latents import part_of
from flow_factory.distributed.engines import Engine
from flow_factory.models.loading import DTYPES
from flow_factory.policy.policy import Policy
from tests.conftest import cells
from tests.models.cases import EACH, every_case, every_checkpoint, row
from tests.models.harness import LORA, Tiny, drawn, euler, lora, same, stock, stock_of, tiny, trained


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@every_case
def test_evaluation_draws_the_stock_pipelines_pictures(name: str, dtype: str) -> None:
    """After a rollout, and without encoders; rows that may share a batch are drawn in one."""
    t = tiny(name, dtype)
    t.roll(noisy=())
    one, two = (t.adapter.joinable(cond) for cond in t.conds)
    batches: list[tuple[int, ...]] = [(0, 1)] if one is not None and one == two else [(0,), (1,)]
    for rows in batches:
        assert same(t.evaluate(rows), drawn(stock(name, dtype), t.case, rows))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "own"), [("flux1-kontext", {"_auto_resize": True}), ("qwen-image-edit", {})])
def test_pictures_are_brought_to_the_pipelines_own_size_where_none_is_given(name: str, own: dict[str, bool]) -> None:
    """About a megapixel."""
    t = Tiny(name, condition_image_size=None)
    (path,) = row(t.case).images
    assert same(t.evaluate(), drawn(stock(name), t.case, image=Image.open(path), condition_image_size=None, **own))


@pytest.mark.parametrize(
    "name",
    [
        "qwen-image-edit",
        *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("ltx2-i2av", "flux1-kontext", "wan21-i2v", "sd3-5")),
    ],
)
def test_several_samples_of_a_row_are_evaluated_as_each_alone(name: str) -> None:
    """Also those of a pipeline that takes one prompt a call (`eval.group_size` and `eval.per_device_batch_size` above 1)."""
    t = tiny(name)
    both = t.evaluate((0, 0), noises=(3, 4))
    for one, k in zip(both, (3, 4), strict=True):
        (alone,) = t.evaluate((0,), noises=(k,))
        a, b = (np.asarray(getattr(media, "frames", [media])[-1], np.int16) for media in (one, alone))
        assert abs(a - b).max() <= 2
    assert not same(both[:1], both[1:])


@contextmanager
def spied(pipe: Any) -> Iterator[list[Tensor]]:
    """The states that the stock scheduler steps to."""
    states: list[Tensor] = []
    step = type(pipe.scheduler).step

    def seen(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = step(self, *args, **kwargs)
        states.append(out[0])
        return out

    with mock.patch.object(type(pipe.scheduler), "step", seen):
        yield states


def ends(t: Tiny, ids: Sequence[int]) -> list[Tensor]:
    """The last states of an ODE rollout, one a modality."""
    with euler(t.adapter.pipe):
        recorder: Any = t.roll(noisy=(), ids=ids)[1]
    return [r.last for r in (recorder, recorder.twin) if r is not None]


@every_case
def test_an_ode_rollout_ends_where_the_stock_loop_ends(name: str) -> None:
    """To the bit for one sample; each of two up to rounding, which depends on the size of the batch."""
    t, pipe = tiny(name), stock(name)
    alone, both = ends(t, (0,)), ends(t, (0, 1))
    for k in (0, 1):
        with euler(pipe), spied(pipe) as states:
            drawn(pipe, t.case, noise=("init", k))
        last = [part_of(state, t.adapter.sampled(state)) for state in states[-len(alone) :]]
        assert all(torch.allclose(mine[k : k + 1], its, rtol=1e-3, atol=1e-4) for mine, its in zip(both, last, strict=True))
        assert k > 0 or all(torch.equal(mine, its) for mine, its in zip(alone, last, strict=True))


# -- LoRA -------------------------------------------------------------------------------------------------------------------------


def loaded(name: str, folder: Path, dtype: str) -> Any:
    """A stock pipeline with the saved LoRA, as guidance and diffusers' documentation say."""
    pipe = stock_of(name, dtype)
    if hasattr(pipe, "load_lora_weights"):
        pipe.load_lora_weights(folder)
    else:
        pipe.transformer.load_lora_adapter(folder, use_safetensors=True)
    if (folder / "transformer_2").exists():
        pipe.load_lora_weights(folder / "transformer_2", load_into_transformer_2=True)
    return pipe


@pytest.mark.parametrize("dtype", ["bf16", pytest.param("fp32", marks=pytest.mark.slow)])
@every_checkpoint
def test_a_saved_lora_in_a_stock_pipeline_draws_what_a_run_evaluates(name: str, dtype: str, tmp_path: Path) -> None:
    """To the bit: the run has it in float32, the stock pipeline in its own dtype, and some parts of the model in float32 in both."""
    t, policy = trained(name, dtype, **LORA)
    save_model(tmp_path, policy, type(t.adapter.pipe))
    t.ask = engine_over(policy, {"bf16": "bf16", "fp32": "no"}[dtype])
    evaluated = t.evaluate()
    assert {p.dtype for p in policy.trained().values()} == {torch.float32}
    assert same(evaluated, drawn(loaded(name, tmp_path, dtype), t.case))
    assert not same(evaluated, drawn(stock(name, dtype), t.case))


def engine_over(policy: Policy, precision: str, device: str = "cpu") -> Engine:
    """As a run has it."""
    AcceleratorState._reset_state(reset_partial_state=True)
    engine = Engine(EngineSettings(), Accelerator(mixed_precision=precision, cpu=device == "cpu"), 1.0)
    engine.wrap(policy, torch.optim.AdamW)
    return engine


def replaced(name: str, folder: Path, dtype: str) -> Any:
    """A stock pipeline with the saved transformers, as `from_pretrained` loads them."""
    pipe = stock_of(name, dtype)
    for component in pipe.components:
        if (folder / component).exists():
            bare = getattr(pipe, component)
            setattr(pipe, component, type(bare).from_pretrained(folder / component, torch_dtype=DTYPES[dtype]))
    return pipe


FULL = [(name, master) for name in EACH for master in ("fp32", "bf16")]
FEW = {("flux1", "fp32"), ("sd3-5", "fp32"), ("wan21-t2v", "fp32"), ("wan21-t2v", "bf16")}


@cells("name", "master", FULL, {*FULL} - FEW)
def test_saved_weights_in_a_stock_pipeline_draw_what_a_run_evaluates(name: str, master: str, tmp_path: Path) -> None:
    """Of full fine-tuning, to the bit, whatever dtype the weights are trained in."""
    t, policy = trained(name, "bf16", finetune_type="full", master_weight_dtype=master)
    with torch.no_grad():
        for p in policy.trained().values():
            p.mul_(1 + 0.1 * torch.rand(p.shape))  # none that 16 bits hold
    save_model(tmp_path, policy, type(t.adapter.pipe))
    t.ask = engine_over(policy, "bf16")
    evaluated = t.evaluate()
    assert {p.dtype for p in policy.trained().values()} == {DTYPES[master]}
    assert same(evaluated, drawn(replaced(name, tmp_path, "bf16"), t.case))
    assert not same(evaluated, drawn(stock(name, "bf16"), t.case))


@every_checkpoint
def test_a_saved_lora_comes_back_into_a_fresh_policy(name: str, tmp_path: Path) -> None:
    t, policy = lora(name)
    save_model(tmp_path, policy, type(t.adapter.pipe))
    _, fresh = trained(name, seed=1, **LORA)
    before = weights(fresh)
    load_model(tmp_path, fresh)
    saved, here = weights(policy), weights(fresh)
    assert saved.keys() == here.keys() and all(torch.equal(here[k], saved[k]) for k in saved)
    assert not any(torch.equal(before[k], here[k]) for k in saved)


def weights(policy: Policy) -> dict[str, Tensor]:
    return {k: p.detach().clone() for k, p in policy.trained().items()}
