"""The tiny pipelines are what the other tests take them for: whole, the same everywhere, and moved by all that a real one is moved by."""

import inspect
import re
from typing import Any

import pytest
import torch
from diffusers.pipelines.hunyuan_video1_5.pipeline_hunyuan_video1_5 import format_text_input
from torch import Tensor, nn
from transformers import AutoTokenizer
from transformers.utils import is_torchvision_available

from tests.tiny.encoders import image_only_processor
from tests.tiny.pipelines import PIPELINES, SMALL, build, condition, quick, saved
from tests.tiny.text import qwen_tokenizer

PROMPTS = {"prompt": "a red circle", "negative_prompt": "low quality"}
DEAD = {
    "qwen": r"transformer_blocks\.1\.(attn\.(add_q_proj|to_add_out)|txt_mlp\..*)",
    "sd3": r"transformer_blocks\.1\.attn\.add_q_proj",
    "hidream": r".*\.experts\..*",
    "hunyuan": r"transformer_blocks\.0\.(attn\.(add_q_proj|to_add_out)|ff_context\..*)|(image_embedder|context_embedder_2)\..*",
}
"""Never get a gradient: the last block's text stream, experts outside of training mode, and what embeds pictures and glyphs."""


def latents(pipe: Any, name: str, call: Any = None, steps: int = 2, **arguments: Any) -> Tensor:
    """The final state of a small sample, with guidance where the pipeline has any."""
    call = call or type(pipe).__call__
    known = inspect.signature(call).parameters
    texts = {k: v for k, v in PROMPTS.items() if k in known}
    guidance = {"true_cfg_scale": 4.0} if "true_cfg_scale" in known else {}
    arguments = {**SMALL[name], **texts, **guidance, **condition(name), **arguments}
    with quick(pipe):
        return call(pipe, **arguments, num_inference_steps=steps, generator=torch.Generator().manual_seed(0), output_type="latent",
                    return_dict=False)[0]  # fmt: skip


def modules(pipe: Any) -> dict[str, nn.Module]:
    return {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}


def weights(pipe: Any) -> dict[str, Tensor]:
    return {f"{part}.{name}": p for part, module in modules(pipe).items() for name, p in module.state_dict().items()}


def loaded(name: str) -> Any:
    """The saved pipeline. Two of them have parts that need torchvision; without it they are made from what is there."""
    folder, cls = saved(name), type(build(name))
    if is_torchvision_available():
        return cls.from_pretrained(folder)
    if name == "flux2":
        pipe = cls.from_pretrained(folder, tokenizer=None)
        pipe.register_modules(tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer"))
        return pipe
    parts = {"processor": image_only_processor().from_pretrained(folder / "processor")} if "edit" in name else {}
    return cls.from_pretrained(folder, **parts)


def change(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / a.norm())


@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipeline_has_the_same_weights_at_every_call(name: str) -> None:
    first, before = weights(build(name)), torch.manual_seed(123).get_state()
    second = weights(build(name))
    assert torch.equal(torch.get_rng_state(), before)
    assert first.keys() == second.keys() and all(torch.equal(p, second[k]) for k, p in first.items())


@pytest.mark.parametrize("name", PIPELINES)
def test_a_checkpoint_draws_what_its_pipeline_draws(name: str) -> None:
    pipe, copy = build(name), loaded(name)
    copy.set_progress_bar_config(disable=True)
    for module in modules(copy).values():  # what is mapped from a file begins anywhere in memory, and rounding depends on where
        for p in module.parameters():
            p.data = p.data.clone()
    close = 1e-5 if name == "hidream" else 0  # a checkpoint does not say which attention it was built with
    assert torch.allclose(latents(pipe, name), latents(copy, name), rtol=0, atol=close)


@pytest.mark.parametrize("name", PIPELINES)
def test_samples_depend_on_all_that_is_asked_for(name: str) -> None:
    pipe = build(name)
    x = latents(pipe, name)
    others = {k: v for k, v in PROMPTS.items() if k in inspect.signature(type(pipe).__call__).parameters and name != "flux1_kontext"}
    for text in others:
        assert change(x, latents(pipe, name, **{text: "two blue squares"})) > 0.01, text
    if condition(name):
        assert change(x, latents(pipe, name, **condition(name, seed=1))) > 0.01
    assert torch.isfinite(latents(pipe.to(torch.bfloat16), name, steps=6)).all()


@pytest.mark.parametrize("name", PIPELINES)
def test_a_gradient_reaches_every_linear_layer(name: str) -> None:
    pipe = build(name)
    parts = {k: m for k, m in modules(pipe).items() if k.startswith("transformer")}
    latents(pipe, name, inspect.unwrap(type(pipe).__call__), steps=4).square().mean().backward()
    none = {n for m in parts.values() for n, layer in m.named_modules() if isinstance(layer, nn.Linear) and not has_gradient(layer)}
    assert {n for n in none if not re.fullmatch(DEAD.get(name.split("_")[0], ""), n)} == set()


def has_gradient(layer: nn.Linear) -> bool:
    return layer.weight.grad is not None and bool(layer.weight.grad.any())


@pytest.mark.parametrize("name", ["wan22_a14b_t2v", "wan22_a14b_i2v"])
def test_the_two_experts_differ(name: str) -> None:
    pipe = build(name)
    second = pipe.transformer_2.state_dict()
    assert not any(torch.equal(p, second[k]) for k, p in pipe.transformer.state_dict().items() if p.std() > 0)


def test_the_pipelines_own_prompts_are_cut_off_to_the_token() -> None:
    tokens = qwen_tokenizer()
    for name in ("qwen_image", "qwen_image_edit_plus"):
        pipe = build(name)
        head = pipe.prompt_template_encode.split("{}")[0]
        assert len(tokens(head).input_ids) == pipe.prompt_template_encode_start_idx
    pipe = build("hunyuan_video15")
    ids = tokens.apply_chat_template(format_text_input(["cat"], pipe.system_message))["input_ids"][0]
    assert ids.index(tokens.convert_tokens_to_ids("cat")) == pipe.prompt_template_encode_start_idx
