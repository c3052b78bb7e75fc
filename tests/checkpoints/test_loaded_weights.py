"""Weights that are loaded are the saved ones, of this program or another; those of another model are refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline
from safetensors.torch import load_file, save_file

from flow_factory.checkpoints.checkpoint import (
    CheckpointError,
    kind_of,
)
from flow_factory.checkpoints.lora_file import LORA_FILE, PEFT_CONFIG
from flow_factory.checkpoints.model_files import load_model
from flow_factory.checkpoints.original_tables import LTX2
from flow_factory.checkpoints.single_file import by_own_names
from flow_factory.policy.policy import Policy
from tests.checkpoints.policies import FULL, LORA, only, saved, state_of
from tests.conftest import flux, policy_over
from tests.tiny.pipelines import PIPELINES

SOME = FULL | {"target_modules": ("attn.to_q",)}


@pytest.mark.parametrize("model", [LORA, FULL, SOME])
def test_loaded_weights_are_the_saved_ones(tmp_path: Path, model: dict[str, Any]) -> None:
    source, target = policy_over(flux(), seed=1, **model), policy_over(flux(), seed=2, **model)
    with torch.no_grad():
        for p in source.trained().values():
            p.mul_(1.5)
    trained = set(target.trained())
    load_model(saved(tmp_path, source), target)
    assert all(torch.equal(v, state_of(target)[k]) for k, v in state_of(source).items())
    assert set(target.trained()) == trained


@pytest.mark.parametrize(("model", "kind"), [(LORA, "lora"), (FULL, "full")])
def test_weights_load_from_beside_a_training_state(tmp_path: Path, model: dict[str, Any], kind: str) -> None:
    policy = policy_over(flux(), seed=1, **model)
    (saved(tmp_path, policy) / "state").mkdir()
    (tmp_path / "state" / "progress.json").write_text("{}")
    target = policy_over(flux(), seed=2, **model)
    load_model(tmp_path, target)
    assert kind_of(tmp_path) == "state"
    assert all(torch.equal(v, state_of(target)[k]) for k, v in state_of(policy).items())


@pytest.mark.parametrize(("here", "there", "message"), [
    (LORA | {"lora_rank": 2}, LORA, r"it has rank 4, and this run's LoRA 2; write model.lora_rank: 4 or more"),
    (LORA | {"target_modules": ("attn.to_q",)}, LORA, r"model.target_modules leaves out layers that it is of: .* more; add them"),
    (FULL, LORA, "holds lora weights, but model.finetune_type is full"),
    (LORA, FULL, "holds full weights, but model.finetune_type is lora"),
])  # fmt: skip
def test_weights_of_another_model_are_refused(tmp_path: Path, here: dict[str, Any], there: dict[str, Any], message: str) -> None:
    folder, policy = saved(tmp_path, policy_over(flux(), seed=1, **there)), policy_over(flux(), seed=2, **here)
    before = state_of(policy)
    with pytest.raises(CheckpointError, match=message) as error:
        load_model(folder, policy)
    assert str(folder) in str(error.value)
    assert all(torch.equal(v, state_of(policy)[k]) for k, v in before.items())


# -- of other origin ------------------------------------------------------------------------------------------------------------------


def bare(folder: Path, policy: Policy) -> dict[str, torch.Tensor]:
    """A LoRA's tensors, by diffusers' names."""
    return load_file(saved(folder, policy) / LORA_FILE)


def test_a_lora_without_alpha_has_its_rank_as_diffusers_has_it(tmp_path: Path, flux_folder: Path) -> None:
    """As other trainers write it; with another alpha here it would be applied at another strength."""
    source = policy_over(flux(), seed=1, **LORA)
    folder = only(tmp_path, LORA_FILE, bare(tmp_path, source))
    target = policy_over(flux(), seed=2, **LORA | {"lora_alpha": 4})
    load_model(folder, target)
    assert all(torch.equal(v, target.trained()[k]) for k, v in source.trained().items())
    stock = FluxPipeline.from_pretrained(flux_folder)
    stock.load_lora_weights(folder)
    (layer, *_) = (m for m in stock.transformer.modules() if hasattr(m, "scaling"))
    assert list(layer.scaling.values()) == [1.0]


def added(policy: Policy) -> dict[str, torch.Tensor]:
    """What each LoRA layer adds to its weight."""
    layers = ((name, m) for name, m in policy.models["transformer"].named_modules() if hasattr(m, "get_delta_weight"))
    return {name: m.get_delta_weight("default").detach() for name, m in layers}


@pytest.mark.parametrize(("here", "there"), [
    ({"lora_rank": 8}, {}), ({"lora_alpha": 24}, {}), ({}, {"target_modules": ("attn.to_q",)}), ({}, {"lora_rank": 1, "lora_alpha": 5}),
])  # fmt: skip
def test_a_lora_of_another_form_is_the_same_function_and_all_of_it_can_learn(
    tmp_path: Path, here: dict[str, Any], there: dict[str, Any]
) -> None:
    """Where the saved one has nothing, lora_A is the start of a new LoRA, or no gradient would ever reach it."""
    source, target = policy_over(flux(), seed=1, **LORA | there), policy_over(flux(), seed=2, **LORA | here)
    load_model(saved(tmp_path, source), target)
    found, wanted = added(target), added(source)
    assert wanted.keys() <= found.keys() and all(wanted[name].any() for name in wanted)
    for name, change in found.items():
        torch.testing.assert_close(change, wanted.get(name, torch.zeros_like(change)), rtol=1e-6, atol=1e-7)
    assert all(p.any(1).all() for name, p in target.trained().items() if ".lora_A." in name)


@pytest.mark.parametrize("renamed", [
    lambda k: k.removeprefix("transformer."),
    lambda k: k.replace("transformer.", "base_model.model.", 1),
    lambda k: k.replace("transformer.", "base_model.model.", 1).replace(".weight", ".default.weight"),
    lambda k: k.replace("lora_A", "lora_down").replace("lora_B", "lora_up"),
], ids=["no prefix", "PEFT", "PEFT's state dict", "down and up"])  # fmt: skip
def test_a_lora_file_by_other_names_loads(tmp_path: Path, renamed: Callable[[str], str]) -> None:
    """With an alpha beside each layer."""
    source, target = policy_over(flux(), seed=1, **LORA), policy_over(flux(), seed=2, **LORA)
    tensors = {renamed(k): v for k, v in bare(tmp_path, source).items()}
    layers = {k.rsplit(".lora_", 1)[0] for k in tensors}
    folder = only(tmp_path, "mine.safetensors", tensors | {f"{layer}.alpha": torch.tensor(12.0) for layer in layers})
    load_model(folder / "mine.safetensors", target)
    assert all(torch.equal(v, target.trained()[k]) for k, v in source.trained().items())


@pytest.mark.parametrize(("key", "message"), [
    ({"use_dora": True}, "another kind of LoRA: use_dora, and no magnitudes; merge it"),
    ({"alpha_pattern": {"to_q": "1"}}, "is damaged: ValueError: alpha_pattern must be an object of numbers"),
    ({"lora_alpha": "12"}, "is damaged: ValueError: lora_alpha is '12', no number"),
])  # fmt: skip
def test_a_lora_that_is_computed_otherwise_is_refused(tmp_path: Path, key: dict[str, Any], message: str) -> None:
    policy = policy_over(flux(), seed=1, **LORA)
    saved(tmp_path, policy)
    (tmp_path / LORA_FILE).unlink()
    (tmp_path / PEFT_CONFIG).write_text(json.dumps(json.loads((tmp_path / PEFT_CONFIG).read_text()) | key))
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path, policy)


@pytest.mark.parametrize("size", ["10GB", "30KB"])
def test_a_full_checkpoint_at_the_root_loads(tmp_path: Path, size: str) -> None:
    """As other programs write it, whole or in shards."""
    source, target = policy_over(flux(), seed=1, **FULL), policy_over(flux(), seed=2, **FULL)
    with torch.no_grad():
        for p in source.trained().values():
            p.mul_(1.5)
    source.models["transformer"].save_pretrained(tmp_path, max_shard_size=size)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1 if size == "10GB" else len(list(tmp_path.glob("*.safetensors"))) > 1
    load_model(tmp_path, target)
    assert all(torch.equal(v, state_of(target)[k]) for k, v in state_of(source).items())


def test_all_weights_come_from_one_file_by_diffusers_names_or_those_of_the_original_code(tmp_path: Path) -> None:
    """LTX-2's, whose names in its authors' files differ in blocks and outside of them; those of another model are one line."""
    source, target = (policy_over(flux(), seed=seed, **FULL) for seed in (1, 2))
    with torch.no_grad():
        for p in source.trained().values():
            p.mul_(1.5)
    file = only(
        tmp_path, "whole.safetensors", {f"model.diffusion_model.{k}": v for k, v in source.models["transformer"].state_dict().items()}
    )
    load_model(file / "whole.safetensors", target)
    assert all(torch.equal(v, target.trained()[k]) for k, v in source.trained().items())
    module = PIPELINES["ltx2_t2av"]().transformer
    theirs = {("norm_q", "q_norm"), ("norm_k", "k_norm"), *((f"{ours}.", f"{theirs}.") for ours, theirs in LTX2.top.items())}
    theirs |= {(f"{kind}_a2v_cross_attn_scale_shift_table", f"scale_shift_table_a2v_ca_{kind}") for kind in ("video", "audio")}
    renamed = {}
    for name, tensor in module.state_dict().items():
        for ours, other in sorted(theirs, key=lambda pair: -len(pair[0])):
            name = other + name[len(ours) :] if name.startswith(ours) else name.replace(ours, other) if "." not in ours else name
        renamed[f"model.diffusion_model.{name}"] = tensor
    assert renamed.keys() != {f"model.diffusion_model.{name}" for name in module.state_dict()}
    read = by_own_names(tmp_path, renamed, module)
    assert read.keys() == module.state_dict().keys() and all(torch.equal(read[k], v) for k, v in module.state_dict().items())
    save_file({"double_blocks.0.x": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(
        CheckpointError, match="other.safetensors does not fit this model: diffusers cannot convert it to FluxTransformer2D"
    ):
        load_model(tmp_path / "other.safetensors", target)
