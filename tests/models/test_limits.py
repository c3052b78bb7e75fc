"""What a pipeline would answer with a stack trace is refused before, in a sentence."""

from typing import Any

import pytest
import torch
from PIL import Image

from flow_factory.models.loading import load_adapter, sketch_adapter
from flow_factory.models.proof import prove
from flow_factory.types import Row
from flow_factory.utils.errors import UserError
from tests.conftest import policy_over
from tests.tiny.pipelines import SMALL, saved

GUIDED = {"guidance_scale": 3.0}


@pytest.mark.parametrize("length", [256, 511])
def test_wan21_i2v_takes_512_tokens_of_text(length: int) -> None:
    adapter = load_adapter(str(saved("wan21_i2v")), "wan2_i2v")
    adapter.check_call({**SMALL["wan21_i2v"], **GUIDED})
    with pytest.raises(UserError, match=f"max_sequence_length: {length}: .* write 512"):
        adapter.check_call({**SMALL["wan21_i2v"], **GUIDED, "max_sequence_length": length})


def test_other_wans_take_any_length() -> None:
    for name, family in (("wan22_a14b_i2v", "wan2_i2v"), ("wan21_t2v", "wan2_t2v")):
        load_adapter(str(saved(name)), family).check_call({**SMALL[name], **GUIDED, "max_sequence_length": 100})


@pytest.mark.parametrize(("asked", "near"), [(20, 16), (21, 24), (1, 8)])
def test_ltx2_takes_multiples_of_its_registers(asked: int, near: int) -> None:
    adapter = load_adapter(str(saved("ltx2_t2av")), "ltx2_t2av")
    with pytest.raises(UserError, match=f"max_sequence_length: {asked}: .* a multiple of 8; write {near}"):
        adapter.encode(Row(0, "rain"), {**SMALL["ltx2_t2av"], **GUIDED, "max_sequence_length": asked})


WITHOUT = ("max_area", "_auto_resize", "image_crf")
SIDES = [(1, 1), (2, 2), (7, 7), (16, 16), (63, 63), (64, 64), (1, 300), (300, 1), (200, 10), (10, 200), (4000, 4), (512, 64), (520, 64)]
DRAWN = {"flux1_kontext": "flux1-kontext", "flux2": "flux2", "flux2_klein": "flux2-klein", "qwen_image_edit_plus": "qwen-image-edit-plus",
         "ltx2_i2av": "ltx2_i2av", "wan21_i2v": "wan2_i2v", "wan22_5b_i2v": "wan2_i2v"}  # fmt: skip


@pytest.mark.parametrize("name", DRAWN)
def test_a_picture_is_refused_by_its_size_alone_or_drawn(name: str, tmp_path: Any) -> None:
    """What the sketch of a checkpoint says of a size is what becomes of it in the pipeline."""
    family = DRAWN[name]
    sketch, adapter = sketch_adapter(str(saved(name)), family), load_adapter(str(saved(name)), family)
    area = {"condition_image_size": 64} if "condition_image_size" in adapter.extra_call_arguments else {}
    call = {**{k: v for k, v in SMALL[name].items() if k not in WITHOUT}, **GUIDED, **area}
    for width, height in SIDES:
        path = tmp_path / f"{width}x{height}.png"
        Image.new("RGB", (width, height), (90, 60, 30)).save(path)
        row = Row(0, "a red cat", images=(str(path),), source="train.jsonl:3")
        try:
            sketch.check_conditions(row, {str(path): (width, height, 1)}, call)
        except UserError as error:
            assert str(error).startswith(f"train.jsonl:3: {path}: {width} x {height} pixels: too ")
            with pytest.raises(UserError, match="pixels: too "):
                adapter.conditions(row, call)
        else:
            with torch.no_grad():
                adapter.evaluate(adapter.encode(row, call), call, 2, [torch.Generator().manual_seed(0)])


def test_flux2_has_the_limits_of_its_pipeline() -> None:
    adapter = sketch_adapter(str(saved("flux2")), "flux2")
    for width, height in [*SIDES, (64, 511), (64, 513), (65, 520), (100, 63)]:
        try:
            adapter.pipe.image_processor.check_image_input(Image.new("1", (width, height)))
        except ValueError:
            assert adapter.unusable(width, height, {}) is not None, (width, height)
        else:
            assert adapter.unusable(width, height, {}) is None, (width, height)


@pytest.mark.parametrize(("size", "why"), [((48, 200), "too small"), ((1000, 100), "too narrow")])
def test_flux2_names_the_row_of_a_picture_that_it_cannot_take(tmp_path: Any, size: tuple[int, int], why: str) -> None:
    Image.new("RGB", size).save(tmp_path / "odd.png")
    adapter = load_adapter(str(saved("flux2")), "flux2")
    with pytest.raises(UserError, match=rf"train.jsonl:3: .*odd.png: .*{why}"):
        adapter.encode(Row(0, "a dog", images=(str(tmp_path / "odd.png"),), source="train.jsonl:3"), {**SMALL["flux2"], **GUIDED})


def test_qwen_edit_always_resizes() -> None:
    adapter = load_adapter(str(saved("qwen_image_edit_plus")), "qwen-image-edit-plus")
    adapter.check_call({**SMALL["qwen_image_edit_plus"], **GUIDED, "auto_resize": True})
    with pytest.raises(UserError, match="auto_resize: false: .* condition_image_size"):
        adapter.check_call({**SMALL["qwen_image_edit_plus"], **GUIDED, "auto_resize": False})


@pytest.mark.parametrize("checkpointing", [False, True])
def test_chroma_is_exact_with_checkpointing_though_diffusers_then_leaves_out_its_attention_mask(checkpointing: bool) -> None:
    adapter = load_adapter(str(saved("chroma")), "diffusers")
    call = {**SMALL["chroma"], **GUIDED}
    with torch.no_grad():
        cond = adapter.encode(Row(0, "a red cat", "blurry"), call)
    policy_over(adapter, checkpointing=checkpointing, finetune_type="lora", target_modules=("default",))
    prove(adapter, cond, call, 2)
    if checkpointing:
        adapter.field.bare["transformer"].enable_gradient_checkpointing()
        with pytest.raises(UserError, match="ChromaPipeline cannot be trained: .* does not compute what the rollout did"):
            prove(adapter, cond, call, 2)


def test_a_generic_pipelines_blocks_are_computed_again_in_the_backward_pass_and_the_gradient_is_the_same() -> None:
    gradients, forwards = [], []
    for checkpointing in (False, True):
        adapter = load_adapter(str(saved("lumina2")), "diffusers")
        call = {**SMALL["lumina2"], "guidance_scale": 1.0}
        with torch.no_grad():
            cond = adapter.encode(Row(0, "a red cat", "blurry"), call)
        policy = policy_over(adapter, checkpointing=checkpointing, finetune_type="lora", target_modules=("default",))
        calls: list[int] = []
        adapter.field.bare["transformer"].layers[0].attn.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        x = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
        adapter.velocity(x, torch.tensor(500.0), torch.tensor(0.5), cond, call).square().mean().backward()
        gradients.append([p.grad.clone() for p in policy.trained().values() if p.grad is not None])
        forwards.append(len(calls))
    assert forwards[1] == forwards[0] + 1 and len(gradients[0]) > 10
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
