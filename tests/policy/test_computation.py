"""How a policy computes, on a tiny FLUX.1: its dtypes, checkpoints of gradients, attention, compilation, the VAE and FSDP's blocks."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
from diffusers import WanPipeline
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from flow_factory.config import load_config
from flow_factory.core.randomness import generator
from flow_factory.models.loading import load_adapter
from flow_factory.policy.attention import attention_problem
from flow_factory.policy.gradient_checkpointing import CheckpointedBlock, blocks_of
from flow_factory.policy.policy import build_policy
from flow_factory.training.model_setup import open_adapter
from flow_factory.utils.errors import UserError
from tests.conftest import CALL, cells, condition, flux, fresh_policy, policy_over, velocity_at
from tests.policy.layers import LORA, transformer
from tests.tiny.pipelines import saved
from tests.tiny.run import write_run


def test_a_lora_on_a_bf16_base_has_float32_weights() -> None:
    adapter = flux(torch.bfloat16)
    policy = policy_over(adapter, "bf16", **LORA)
    assert {p.dtype for p in policy.trained().values()} == {torch.float32}
    assert {p.dtype for p in policy.components.parameters() if not p.requires_grad} == {torch.bfloat16}


def test_a_lora_brings_no_input_to_float32_and_has_the_bits_of_one_that_does() -> None:
    """peft brings what comes in to the matrices' float32, and autocast brings it back: here neither does."""

    class Widened(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.shapes: list[torch.Size] = []

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            self.shapes += [out.shape] if isinstance(out, Tensor) and out.dtype == torch.float32 else []
            return out

    policy = policy_over(flux(torch.bfloat16), "bf16", finetune_type="lora", target_modules=("attn.to_q",))
    layers = [m for m in policy.modules() if isinstance(m, LoraLayer)]
    x = torch.randn(2, 5, layers[0].in_features, generator=torch.Generator().manual_seed(0)).bfloat16()
    for layer in layers:
        with Widened() as widened, torch.no_grad():
            ours = layer(x)
        assert widened.shapes == []
        layer.cast_input_dtype_enabled = True
        for matrix in (*layer.lora_A.values(), *layer.lora_B.values()):
            assert matrix.weight.dtype == torch.float32
            matrix.__class__ = nn.Linear
        with Widened() as widened, torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            theirs = layer(x)
        assert x.shape in widened.shapes and torch.equal(ours, theirs)


def test_float32_master_weights_keep_all_their_bits_in_a_bf16_run() -> None:
    loaded = dict(transformer().named_parameters())
    whole = fresh_policy(flux(), "bf16", finetune_type="full", master_weight_dtype="fp32")
    assert all(torch.equal(p, loaded[name.removeprefix("transformer.")]) for name, p in whole.trained().items())
    some = fresh_policy(flux(), "bf16", finetune_type="full", master_weight_dtype="fp32", target_modules=("attn.to_q",))
    for name, p in some.components["transformer"].named_parameters():
        assert torch.equal(p, loaded[name].to(torch.float32 if ".attn.to_q." in name else torch.bfloat16))


def test_what_is_not_trained_has_the_dtypes_of_the_stock_pipeline(tmp_path: Path) -> None:
    """diffusers keeps some of Wan's weights in float32; the expert that is not trained has them too, and nothing else in 32 bits."""
    model = [f"model.model_name_or_path={saved('wan22_a14b_t2v')}", "model.model_type=wan2_t2v", "mixed_precision=bf16"]
    keys = ["model.finetune_type=full", "model.master_weight_dtype=fp32", "model.target_modules=attn1.to_q"]
    adapter = open_adapter(config := load_config(write_run(tmp_path), [*model, *keys]))
    policy = build_policy(adapter, config.model, "bf16", False, 0, torch.device("cpu"))
    stock = WanPipeline.from_pretrained(saved("wan22_a14b_t2v"), torch_dtype=torch.bfloat16)
    trained = set(policy.trained().values())
    for expert in ("transformer", "transformer_2"):
        theirs = dict(getattr(stock, expert).named_parameters())
        assert {p.dtype for p in theirs.values()} == {torch.float32, torch.bfloat16}
        mine = {name: p for name, p in adapter.field.bare[expert].named_parameters() if p not in trained}
        assert {name: p.dtype for name, p in mine.items()} == {name: theirs[name].dtype for name in mine}
    assert {p.dtype for p in trained} == {torch.float32}


@pytest.mark.parametrize("model", [LORA, {"finetune_type": "full", "master_weight_dtype": "fp32"}])
def test_gradient_checkpointing_changes_no_gradient(model: dict) -> None:
    gradients: list[list[Tensor]] = []
    for checkpointing in (False, True):
        adapter = flux()
        policy = policy_over(adapter, checkpointing=checkpointing, **model)
        again = [isinstance(block.forward, CheckpointedBlock) for block in blocks_of(policy.components["transformer"])]
        assert again == 4 * [checkpointing]
        velocity_at(adapter, condition(adapter)).square().mean().backward()
        gradients.append([p.grad for p in policy.trained().values()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("backend", ["native", "_native_math"])
def test_an_attention_backend_that_works_gives_the_same_velocity(backend: str) -> None:
    adapter, base = flux(), flux()
    expected = velocity_at(base, condition(base))
    fresh_policy(adapter, attn_backend=backend, **LORA)
    try:
        torch.testing.assert_close(velocity_at(adapter, condition(adapter)), expected, rtol=1e-4, atol=1e-5)
        processors = {block.attn.processor._attention_backend.value for block in adapter.field.bare["transformer"].transformer_blocks}
        assert processors == {backend}
    finally:
        adapter.field.bare["transformer"].set_attention_backend("native")  # diffusers' default is the process's


@pytest.mark.parametrize("backend", ["flash", "_native_cudnn"])
def test_an_attention_backend_that_does_not_work_here_is_an_error_with_those_that_do(backend: str) -> None:
    with pytest.raises(UserError, match=rf"model.attn_backend: '{backend}' does not work on this cpu machine .* do: .*\bnative\b"):
        fresh_policy(flux(), attn_backend=backend, **LORA)
    assert attention_problem("native", torch.device("cpu"), torch.float32) is None


def test_a_backend_that_diffusers_lacks_is_named() -> None:
    assert attention_problem("no_such", torch.device("cpu"), torch.float32) == "diffusers knows no such backend"


@pytest.mark.slow
@cells("checkpointing", [(False,), (True,)], {(False,)})
def test_a_compiled_model_is_asked_with_and_without_gradient_and_answers_alike(checkpointing: bool) -> None:
    adapter, base = flux(), flux()
    policy = policy_over(adapter, checkpointing=checkpointing, compile=True, compile_backend="aot_eager", **LORA)
    policy_over(base, **LORA)
    cond = condition(adapter)
    with torch.no_grad():
        asleep = velocity_at(adapter, cond)
    awake = velocity_at(adapter, cond)
    awake.square().mean().backward()
    assert torch.equal(asleep, awake) and all(p.grad is not None for p in policy.trained().values())
    torch.testing.assert_close(awake, velocity_at(base, cond), rtol=1e-4, atol=1e-5)


def test_decoding_picture_by_picture_draws_the_same_pictures() -> None:
    adapter = flux()
    cond, one_at_a_time = condition(adapter), flux()
    policy_over(one_at_a_time, vae_slicing=True, finetune_type="full", master_weight_dtype="fp32")
    sizes: list[int] = []
    one_at_a_time.pipe.vae.decoder.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    both = [a.evaluate(a.join([cond, cond]), CALL, 2, [generator(0, "eval", i) for i in range(2)]) for a in (adapter, one_at_a_time)]
    assert sizes == [1, 1] and all(np.abs(np.asarray(a, int) - np.asarray(b, int)).max() <= 1 for a, b in zip(*both, strict=True))


def test_tiles_are_asked_for_and_a_vae_that_has_none_is_named() -> None:
    adapter = flux()
    fresh_policy(adapter, vae_tiling=True)
    assert adapter.pipe.vae.use_tiling
    other = flux()
    other.pipe.register_modules(vae=nn.Identity())
    with pytest.raises(UserError, match="model.vae_tiling: Identity has no enable_tiling; write false"):
        fresh_policy(other, vae_tiling=True)


@pytest.mark.parametrize(("name", "model_type", "blocks"), [
    ("flux1", "flux1", {"FluxTransformerBlock": 2, "FluxSingleTransformerBlock": 2}),
    ("wan22_a14b_t2v", "wan2_t2v", {"WanTransformerBlock": 4}),
    ("ltx2_t2av", "ltx2_t2av", {"LTX2VideoTransformerBlock": 2}), ("sd3", "sd3-5", {"JointTransformerBlock": 2}),
])  # fmt: skip
def test_fsdp_finds_the_blocks_of_a_family_to_shard_one_by_one(name: str, model_type: str, blocks: dict[str, int]) -> None:
    """By accelerate's own rule, under the settings of examples/launch/fsdp2.yaml."""
    adapter = load_adapter(str(saved(name)), model_type)
    components = tuple(adapter.field.bare)
    policy = fresh_policy(adapter, target_components=components, finetune_type="full", master_weight_dtype="fp32")
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")
    wraps = fsdp2_prepare_auto_wrap_policy(plugin, policy)
    assert wraps is not None
    found = Counter(type(m).__name__ for m in policy.modules() if wraps(m))
    assert {k: found[k] for k in blocks} == blocks
