"""What is saved is what diffusers and other programs read, byte for byte the same wherever it is written."""

import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from peft import PeftModel
from safetensors.torch import load_file

from flow_factory.checkpoints.checkpoint import (
    CheckpointError,
)
from flow_factory.checkpoints.lora_file import LORA_FILE, PEFT_CONFIG, PEFT_FILE, Lora, read_lora, read_tensors
from flow_factory.checkpoints.lora_formats import widths, write_lora
from flow_factory.checkpoints.lora_names import by_module_names
from flow_factory.checkpoints.merging import merge_lora
from flow_factory.checkpoints.model_files import load_model, lora_at
from flow_factory.core.randomness import generator
from flow_factory.models.flux1 import Flux1
from flow_factory.models.loading import load_pipeline
from tests.checkpoints.policies import FULL, LORA, saved
from tests.conftest import CALL, condition, flux, fresh_policy, policy_over, velocity_at
from tests.tiny.flux import flux_pipeline
from tests.tiny.run import environment

# -- diffusers reads what is saved ----------------------------------------------------------------------------------------------------


def pictures(pipe: FluxPipeline, cond: dict[str, Any]) -> list[np.ndarray]:
    out = pipe(**cond, **CALL, num_inference_steps=3, generator=generator(0, "eval", 0), output_type="pil").images
    return [np.asarray(picture) for picture in out]


@pytest.mark.parametrize("alpha", [12, 4])
def test_a_saved_lora_in_a_stock_pipeline_draws_what_evaluation_drew(flux_folder: Path, tmp_path: Path, alpha: int) -> None:
    """The scale alpha / rank, 3 or 1, comes from the file: a stock pipeline is told nothing."""
    adapter = Flux1(load_pipeline(str(flux_folder), Flux1, torch.float32))
    policy, cond = policy_over(adapter, **LORA | {"lora_alpha": alpha}), condition(adapter)
    evaluated = adapter.evaluate(cond, CALL, 3, [generator(0, "eval", 0)])
    stock = FluxPipeline.from_pretrained(flux_folder)
    without = pictures(stock, cond)
    stock.load_lora_weights(saved(tmp_path, policy))
    assert np.array_equal(pictures(stock, cond)[0], np.asarray(evaluated[0]))
    assert not np.array_equal(without[0], np.asarray(evaluated[0]))
    assert sorted(f.name for f in tmp_path.iterdir()) == [PEFT_CONFIG, PEFT_FILE, LORA_FILE]


@pytest.mark.parametrize("master", ["fp32", "bf16"])
def test_saved_full_weights_are_a_stock_transformer(tmp_path: Path, master: str) -> None:
    policy = fresh_policy(flux(), finetune_type="full", master_weight_dtype=master)
    with torch.no_grad():
        for p in policy.trained().values():
            p.mul_(1.5)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[master]
    stock = FluxTransformer2DModel.from_pretrained(saved(tmp_path, policy) / "transformer", torch_dtype=dtype).state_dict()
    mine = policy.models["transformer"].state_dict()
    assert stock.keys() == mine.keys() and all(torch.equal(stock[k], mine[k]) and stock[k].dtype == mine[k].dtype for k in stock)


def change_of(lora: Lora, layer: str) -> torch.Tensor:
    """What a LoRA adds to a layer's weight."""
    up, down = (lora.tensors[f"{layer}.lora_{way}.weight"] for way in "BA")
    return lora.scale_of(layer) * up @ down


FORMS = {
    "dora, rslora, ranks": {"use_dora": True, "use_rslora": True, "rank_pattern": {"attn.to_q": 2}},
    "rslora, ranks, alphas": {"use_rslora": True, "rank_pattern": {"attn.to_q": 2}, "alpha_pattern": {"attn.to_k": 7.5}},
}


def written_for_others_is_the_same(tmp_path: Path, lora: Lora, bare: torch.nn.Module) -> None:
    """A LoRA written for kohya's programs and for peft is read back; a DoRA is refused for the former."""
    for format in ("kohya", "peft"):
        with pytest.raises(CheckpointError, match="the LoRA is a DoRA") if lora.dora and format == "kohya" else nullcontext():
            write_lora(tmp_path / format, lora, format, "transformer", type(bare).__name__, widths(bare))  # type: ignore[arg-type]
    if not lora.dora:
        read = by_module_names("kohya", read_tensors(load_file(tmp_path / "kohya"), {}), bare)
        assert read.layers == lora.layers
        for layer in lora.layers:  # where layers of other scales are one there, the scale is in the numbers
            torch.testing.assert_close(change_of(read, layer), change_of(lora, layer), rtol=1e-5, atol=1e-6)
    assert read_lora(tmp_path / "peft" / PEFT_FILE).dora == lora.dora
    assert read_lora(tmp_path / "peft" / PEFT_FILE).scale_of(lora.layers[0]) == pytest.approx(lora.scale_of(lora.layers[0]))


@pytest.mark.parametrize("form", [
    pytest.param(form, marks=() if precision == "bf16" and form.startswith("dora") else pytest.mark.exhaustive, id=f"{form}, {precision}")
    for form in FORMS for precision in ("bf16", "no")
])  # fmt: skip
def test_each_form_of_a_lora_begins_as_the_base_and_is_what_a_stock_pipeline_loads(
    flux_folder: Path, tmp_path: Path, form: str, request: pytest.FixtureRequest
) -> None:
    """And what is loaded again, merged, and written for other programs; DoRA's magnitudes learn too."""
    precision = request.node.callspec.id.rpartition(", ")[2]
    dtype, keys = {"bf16": torch.bfloat16, "no": torch.float32}[precision], LORA | FORMS[form]

    def fresh() -> Flux1:
        return Flux1(load_pipeline(str(flux_folder), Flux1, dtype))

    base, cond = fresh(), condition(fresh())
    start = velocity_at(base, cond, dtype)
    fresh_policy(adapter := fresh(), precision, **keys)
    assert torch.equal(velocity_at(adapter, cond, dtype), start)
    policy = policy_over(adapter := fresh(), precision, **keys)
    for name, p in policy.trained().items():
        p.data *= 1.25 if "magnitude" in name else 1
    v = velocity_at(adapter, cond, dtype)
    v.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in policy.trained().values())
    with policy.disable_adapter():
        assert torch.equal(velocity_at(adapter, cond, dtype), start)
    stock = FluxPipeline.from_pretrained(flux_folder, torch_dtype=dtype)
    stock.load_lora_weights(saved(tmp_path, policy))
    assert torch.equal(velocity_at(Flux1(stock), cond, dtype), v)
    again = policy_over(other := fresh(), precision, seed=3, **keys)
    load_model(tmp_path, again)
    assert torch.equal(velocity_at(other, cond, dtype), v)
    lora, module = lora_at(tmp_path, "transformer")[1], load_pipeline(str(flux_folder), Flux1, torch.float32)
    merge_lora(module.transformer, lora)
    merged = Flux1(module)
    bare = merged.field.bare["transformer"]
    if precision == "no":
        torch.testing.assert_close(velocity_at(merged, condition(merged)), v, rtol=0, atol=2e-5)
    written_for_others_is_the_same(tmp_path, lora, bare)


def test_what_is_saved_is_a_folder_of_peft_and_the_other_way(tmp_path: Path) -> None:
    """Whose own loader computes what evaluation computes, and whose own folder loads here."""
    source = policy_over(flux(), seed=1, **LORA)
    saved(tmp_path, source)
    peft = PeftModel.from_pretrained(flux_pipeline().transformer, tmp_path)
    there = dict(peft.get_base_model().named_parameters())
    ours = dict(source.models["transformer"].named_parameters())
    assert ours.keys() <= there.keys() and all(torch.equal(v, there[k]) for k, v in ours.items())
    (layer, *_) = (m for m in peft.modules() if hasattr(m, "scaling"))
    assert list(layer.scaling.values()) == [3.0]
    peft.save_pretrained(tmp_path / "theirs" / "transformer")  # several components have a folder each
    target = policy_over(flux(), seed=2, **LORA)
    load_model(tmp_path / "theirs", target)
    assert all(torch.equal(v, target.trained()[k]) for k, v in source.trained().items())


# -- equal files ----------------------------------------------------------------------------------------------------------------------


SAVE = "import sys; from pathlib import Path; from tests.checkpoints.test_saved_weights import save_both; save_both(Path(sys.argv[1]))"


def save_both(folder: Path) -> None:
    for name, model in (("lora", LORA), ("full", FULL)):
        saved(folder / name, policy_over(flux(), seed=1, **model))


@pytest.mark.slow
def test_equal_weights_are_equal_files_that_others_may_read(tmp_path: Path) -> None:
    """From processes in which sets and maps have other orders; with the mode of any other file."""
    former = os.umask(0o027)
    try:
        save_both(tmp_path / "1")
    finally:
        os.umask(former)
    subprocess.run([sys.executable, "-c", SAVE, tmp_path / "2"], check=True, env=environment(PYTHONHASHSEED="2"))
    first, second = ({str(p.relative_to(tmp_path / k)): p for p in (tmp_path / k).rglob("*") if p.is_file()} for k in "12")
    assert first.keys() == second.keys() and len(first) == 5
    assert [name for name in first if first[name].read_bytes() != second[name].read_bytes()] == []
    assert {p.stat().st_mode & 0o777 for p in first.values()} == {0o640}
