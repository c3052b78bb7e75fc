"""The layers that target_modules chooses, on a tiny FLUX.1."""

import pytest

from flow_factory.models.flux1 import Flux1
from flow_factory.policy.targets import target_names
from flow_factory.utils.errors import UserError
from tests.conftest import flux, fresh_policy
from tests.policy.layers import transformer


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
