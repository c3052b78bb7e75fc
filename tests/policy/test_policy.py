"""What is trained, on a tiny FLUX.1."""

import pytest
import torch

from flow_factory.models.flux1 import Flux1
from flow_factory.policy.targets import target_names
from flow_factory.utils.errors import UserError
from tests.conftest import condition, flux, fresh_policy, policy_over, velocity_at
from tests.policy.layers import LORA, linear_layers, transformer


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
