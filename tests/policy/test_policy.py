"""What is trained and how it computes, on a tiny FLUX.1."""

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
from flow_factory.models.flux1 import Flux1
from flow_factory.models.loading import load_adapter
from flow_factory.policy.attention import attention_problem
from flow_factory.policy.gradient_checkpointing import CheckpointedBlock, blocks_of
from flow_factory.policy.policy import build_policy
from flow_factory.policy.targets import target_names
from flow_factory.training.model_setup import open_adapter
from flow_factory.utils.errors import UserError
from tests.conftest import CALL, cells, condition, flux, fresh_policy, policy_over, velocity_at
from tests.tiny.flux import flux_pipeline
from tests.tiny.pipelines import saved
from tests.tiny.run import write_run

LORA = {"finetune_type": "lora", "target_modules": ("default",)}


def linear_layers(module: nn.Module) -> dict[str, nn.Linear]:
    return {name: m for name, m in module.named_modules() if isinstance(m, nn.Linear)}


def transformer() -> nn.Module:
    return flux_pipeline().transformer


# -- target modules ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "expected"), [
    ("attn.to_q", {"transformer_blocks.0.attn.to_q", "transformer_blocks.1.attn.to_q",
                   "single_transformer_blocks.0.attn.to_q", "single_transformer_blocks.1.attn.to_q"}),
    ("transformer_blocks.1.attn.to_q", {"transformer_blocks.1.attn.to_q"}),
    ("transformer.proj_out", {"proj_out", "single_transformer_blocks.0.proj_out", "single_transformer_blocks.1.proj_out"}),
    (("transformer.x_embedder", "transformer_2.no_such", "context_embedder"), {"x_embedder", "context_embedder"}),
    (("default", "x_embedder"), {"x_embedder", "transformer_blocks.0.attn.to_q", "transformer_blocks.1.ff_context.net.2"}),
])  # fmt: skip
def test_endings_choose_linear_layers(target: str | tuple[str, ...], expected: set[str]) -> None:
    chosen = target_names(transformer(), "transformer", target, Flux1.lora_targets)
    assert set(chosen) >= expected and ("default" in target or len(chosen) == len(expected))
    assert chosen == sorted(set(chosen))


@pytest.mark.parametrize("target", ["all", ("default", "all"), ("no_such", "all")])
def test_all_stands_for_everything(target: str | tuple[str, ...]) -> None:
    assert target_names(transformer(), "transformer", target, Flux1.lora_targets) is None


def test_default_and_all_may_name_their_component() -> None:
    names = target_names(transformer(), "transformer", ["transformer.default"], Flux1.lora_targets)
    assert names == target_names(transformer(), "transformer", "default", Flux1.lora_targets) != []
    assert target_names(transformer(), "transformer", "transformer.all", Flux1.lora_targets) is None
    assert target_names(transformer(), "transformer_2", "transformer.default", Flux1.lora_targets) == []


@pytest.mark.parametrize(("target", "near"), [
    ("attn.to_qq", "attn.to_q"), ("transformer.attn.to_out", "attn.to_out"), ("to_qq", "to_q"), ("norm1", "norm1.linear"),
])  # fmt: skip
def test_an_unknown_ending_is_an_error_with_near_ones(target: str, near: str) -> None:
    with pytest.raises(UserError, match=rf"model.target_modules: .* fits no linear layer of transformer; near ones: .*{near}"):
        target_names(transformer(), "transformer", target, Flux1.lora_targets)


@pytest.mark.parametrize("target", Flux1.lora_targets)
def test_every_default_target_is_in_the_model(target: str) -> None:
    assert target_names(transformer(), "transformer", target, ())


def test_an_unknown_component_is_an_error_with_those_there_are() -> None:
    with pytest.raises(UserError, match="model.target_components: 'transformer_2' is not .* it has transformer"):
        fresh_policy(flux(), finetune_type="full", target_components=("transformer_2",))


# -- what is trained --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["default", "all", "attn.to_q"])
def test_a_lora_trains_two_matrices_a_target_and_nothing_else(target: str) -> None:
    layers = linear_layers(transformer())
    chosen = target_names(transformer(), "transformer", target, Flux1.lora_targets) or list(layers)
    policy = fresh_policy(flux(), finetune_type="lora", target_modules=(target,), lora_rank=3)
    assert sum(p.numel() for p in policy.trained().values()) == sum(3 * (layers[n].in_features + layers[n].out_features) for n in chosen)
    assert all("lora_" in name for name in policy.trained()) and len(policy.trained()) == 2 * len(chosen)


def test_the_lora_adds_alpha_over_rank_times_its_product() -> None:
    adapter = flux()
    policy_over(adapter, **LORA | {"lora_rank": 4, "lora_alpha": 12})
    layer, x = adapter.field.bare["transformer"].transformer_blocks[0].attn.to_q, torch.ones(1, 32)
    product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    torch.testing.assert_close(layer(x), layer.base_layer(x) + 3 * x @ product.T)


def test_full_trains_the_whole_transformer_or_the_layers_it_is_told() -> None:
    bare, layers = transformer(), linear_layers(transformer())
    whole = fresh_policy(flux(), finetune_type="full").trained()
    assert {k.removeprefix("transformer."): p.shape for k, p in whole.items()} == {k: p.shape for k, p in bare.named_parameters()}
    some = fresh_policy(flux(), finetune_type="full", target_modules=("attn.to_q",)).trained()
    wanted = {f"transformer.{name}.{part}" for name in layers if name.endswith("attn.to_q") for part in ("weight", "bias")}
    assert set(some) == wanted


@pytest.mark.parametrize("model", [LORA, {"finetune_type": "full"}])
def test_encoders_and_vae_are_frozen(model: dict) -> None:
    adapter = flux()
    policy_over(adapter, **model)
    parts = (adapter.pipe.text_encoder, adapter.pipe.text_encoder_2, adapter.pipe.vae)
    assert not any(p.requires_grad for part in parts for p in part.parameters())


def test_the_first_lora_weights_depend_on_the_seed_alone() -> None:
    weights = []
    for number, seed in ((1, 7), (2, 7), (2, 8)):
        torch.manual_seed(number)
        before = torch.get_rng_state()
        weights.append(fresh_policy(flux(), seed=seed, **LORA).trained())
        assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(p, weights[1][name]) for name, p in weights[0].items())
    assert not any(torch.equal(p, weights[2][name]) for name, p in weights[0].items() if "lora_A" in name)


def test_the_first_lora_is_the_base_model() -> None:
    adapter, base = flux(), flux()
    policy = fresh_policy(adapter, **LORA)
    assert not any(p.any() for name, p in policy.trained().items() if "lora_B" in name)
    assert torch.equal(velocity_at(adapter, condition(adapter)), velocity_at(base, condition(base)))


# -- how it computes --------------------------------------------------------------------------------------------------------------


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


def test_with_the_adapter_off_it_is_the_base_model() -> None:
    adapter, base = flux(), flux()
    policy, cond = policy_over(adapter, **LORA), condition(adapter)
    trained, v = set(policy.trained()), velocity_at(adapter, cond)
    with policy.disable_adapter():
        assert torch.equal(velocity_at(adapter, cond), velocity_at(base, cond))
    with pytest.raises(ZeroDivisionError), policy.disable_adapter():
        raise ZeroDivisionError
    assert torch.equal(velocity_at(adapter, cond), v) and not torch.equal(v, velocity_at(base, cond))
    assert set(policy.trained()) == trained


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


# -- VAE ---------------------------------------------------------------------------------------------------------------------------


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


# -- FSDP ----------------------------------------------------------------------------------------------------------------------------


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


def test_a_lora_leaves_out_what_is_excluded_and_starts_as_it_is_asked() -> None:
    """Both inits are uniform or normal noise in lora_A and 0 in lora_B; only the uniform one has a bound."""
    keys = {"finetune_type": "lora", "target_modules": ("attn.to_q", "attn.to_k")}
    policy = fresh_policy(
        flux(), **keys, exclude_modules=("single_transformer_blocks.0.attn.to_q", "attn.to_k"), init_lora_weights="kaiming"
    )
    layers = {name.partition(".lora_")[0].removeprefix("transformer.") for name in policy.trained()}
    assert "single_transformer_blocks.1.attn.to_q" in layers and "single_transformer_blocks.0.attn.to_q" not in layers
    assert all(layer.endswith("to_q") for layer in layers)
    for name, p in policy.trained().items():
        assert not p.any() if ".lora_B." in name else p.abs().max() <= p.shape[1] ** -0.5, name
    with pytest.raises(UserError, match="model.exclude_modules: no linear layer of transformer is left to train"):
        fresh_policy(flux(), **keys, exclude_modules=("attn.to_q", "attn.to_k"))


def test_a_dropout_draws_by_its_key_and_nothing_outside_of_training() -> None:
    """The same under recomputation, which runs a forward again in the backward pass; a pattern that fits no layer is named."""
    keys, found = LORA | {"lora_dropout": 0.5}, []
    for recomputed in (False, True):
        policy = policy_over(adapter := flux(), checkpointing=recomputed, **keys)
        cond = condition(adapter)
        with policy.masks.drawn(0, 1):
            v = velocity_at(adapter, cond)
            v.square().mean().backward()
        found.append([v, *(p.grad for p in policy.trained().values())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    with policy.masks.drawn(0, 2):
        assert not torch.equal(velocity_at(adapter, cond), found[0][0])
    policy_over(plain := flux(), **LORA)
    assert torch.equal(velocity_at(adapter, cond), velocity_at(plain, cond))
    with pytest.raises(UserError, match="model.rank_pattern: 'attn.to_qq' fits no layer of transformer that .*; near ones: attn.to_q"):
        fresh_policy(flux(), **LORA, rank_pattern={"attn.to_qq": 2})
