"""Checkpoints are whole or absent, diffusers reads them, and what was saved is what is loaded."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from peft import PeftModel
from safetensors.torch import load_file, save_file

from flow_factory.checkpoints.checkpoint import (
    CheckpointError,
    begin,
    checkpoints,
    finish,
    kind_of,
    newest,
    newest_state,
    partial_of,
    prune,
)
from flow_factory.checkpoints.lora_file import LORA_FILE, PEFT_CONFIG, PEFT_FILE, Lora, read_lora, read_tensors
from flow_factory.checkpoints.lora_formats import widths, write_lora
from flow_factory.checkpoints.lora_names import by_module_names
from flow_factory.checkpoints.merging import merge_lora
from flow_factory.checkpoints.model_files import load_model, lora_at, save_model
from flow_factory.checkpoints.original_tables import LTX2
from flow_factory.checkpoints.single_file import by_own_names
from flow_factory.core.randomness import generator
from flow_factory.models.flux1 import Flux1
from flow_factory.models.loading import load_pipeline
from flow_factory.policy.policy import Policy
from tests.conftest import CALL, condition, flux, fresh_policy, policy_over, velocity_at
from tests.tiny.flux import flux_pipeline
from tests.tiny.pipelines import PIPELINES
from tests.tiny.run import environment

LORA = {"finetune_type": "lora", "target_modules": ("default",), "lora_rank": 4, "lora_alpha": 12}
FULL = {"finetune_type": "full", "master_weight_dtype": "fp32"}
SOME = FULL | {"target_modules": ("attn.to_q",)}


def saved(folder: Path, policy: Policy) -> Path:
    save_model(folder, policy, FluxPipeline)
    return folder


def state_of(policy: Policy) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in policy.components.state_dict().items()}


def pictures(pipe: FluxPipeline, cond: dict[str, Any]) -> list[np.ndarray]:
    out = pipe(**cond, **CALL, num_inference_steps=3, generator=generator(0, "eval", 0), output_type="pil").images
    return [np.asarray(picture) for picture in out]


# -- diffusers reads what is saved --------------------------------------------------------------------------------------------


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


# -- loading ------------------------------------------------------------------------------------------------------------------------


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


# -- of other origin ----------------------------------------------------------------------------------------------------------------


def bare(folder: Path, policy: Policy) -> dict[str, torch.Tensor]:
    """A LoRA's tensors, by diffusers' names."""
    return load_file(saved(folder, policy) / LORA_FILE)


def only(folder: Path, name: str, tensors: dict[str, torch.Tensor]) -> Path:
    """A folder with this file alone."""
    (folder / "other").mkdir()
    save_file(tensors, folder / "other" / name)
    return folder / "other"


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


def test_pickles_are_not_read(tmp_path: Path) -> None:
    for name in ("optimizer.bin", "random_states_0.pkl"):
        (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match="holds pickles, which can run code; name"):
        kind_of(tmp_path)


# -- equal files --------------------------------------------------------------------------------------------------------------------

SAVE = "import sys; from pathlib import Path; from tests.checkpoints.test_checkpoint import save_both; save_both(Path(sys.argv[1]))"


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


# -- folders ------------------------------------------------------------------------------------------------------------------------


def fill(text: str, fail: bool = False) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "a").write_text(text)
        if fail:
            raise OSError("no space left on device")
        (folder / "sub").mkdir()
        (folder / "sub" / "b").write_text(text)

    return write


def put(folder: Path, write: Callable[[Path], object]) -> None:
    partial = partial_of(folder)
    begin(partial)
    write(partial)
    finish(partial, folder)


def test_a_written_folder_replaces_the_old_one_whole(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "epoch_1"
    put(folder, lambda partial: (partial / "stale").write_text("old"))
    put(folder, fill("new"))
    assert sorted(str(p.relative_to(tmp_path)) for p in folder.rglob("*") if p.is_file()) == [
        "checkpoints/epoch_1/a", "checkpoints/epoch_1/sub/b"]  # fmt: skip
    assert [p.name for p in folder.parent.iterdir()] == ["epoch_1"]


@pytest.mark.parametrize("existed", [False, True])
def test_a_failed_write_leaves_what_was_there(tmp_path: Path, existed: bool) -> None:
    folder = tmp_path / "epoch_1"
    if existed:
        put(folder, fill("old"))
    with pytest.raises(OSError, match="no space"):
        put(folder, fill("new", fail=True))
    assert folder.exists() == existed and checkpoints(tmp_path) == [folder] * existed
    assert not existed or ((folder / "a").read_text(), (folder / "sub" / "b").read_text()) == ("old", "old")
    put(folder, fill("third"))
    assert (folder / "sub" / "b").read_text() == "third"


def test_leftovers_of_a_cut_are_in_nobodys_way(tmp_path: Path) -> None:
    for name in ("epoch_1", ".old-epoch_1", ".partial-epoch_1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "stale").write_text("")
    put(tmp_path / "epoch_1", fill("new"))
    assert [p.name for p in tmp_path.iterdir()] == ["epoch_1"] and not (tmp_path / "epoch_1" / "stale").exists()


@pytest.mark.parametrize(("files", "kind"), [
    ([LORA_FILE], "lora"), (["transformer/config.json"], "full"), (["state/progress.json"], "state"),
    ([LORA_FILE, "state/progress.json"], "state"), (["transformer/config.json", "state/progress.json"], "state"),
])  # fmt: skip
def test_what_a_folder_holds(tmp_path: Path, files: list[str], kind: str) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    assert kind_of(tmp_path) == kind


@pytest.mark.parametrize(("folder", "seen"), [("none", "no such folder or file"), ("empty", "empty"), ("full", "notes.txt")])
def test_a_folder_that_is_no_checkpoint_is_described(tmp_path: Path, folder: str, seen: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    with pytest.raises(CheckpointError, match=rf"resume_path: {tmp_path / folder} is not a checkpoint \({seen}\); one holds state/, "):
        kind_of(tmp_path / folder)


@pytest.mark.parametrize(("path", "hint"), [
    ("owner/name", True), ("owner/name/folder@main", True), ("hf://owner/name", True), ("gone", False), ("/owner/name", False),
])  # fmt: skip
def test_a_name_of_the_hub_is_to_be_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, hint: bool) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError) as error:
        kind_of(Path(path))
    assert str(error.value).endswith("; if it is on the hub, download it, and name the folder") == hint


def test_checkpoints_are_in_the_order_of_their_epochs(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    assert newest(tmp_path) == tmp_path and checkpoints(folder) == []
    for name in ("epoch_10", "epoch_9", "epoch_100", ".partial-epoch_200", ".old-epoch_300", "epoch_x", "epoch_400.bak"):
        (folder / name).mkdir(parents=True)
    assert [p.name for p in checkpoints(folder)] == ["epoch_9", "epoch_10", "epoch_100"]
    assert newest(tmp_path) == folder / "epoch_100" and newest(folder / "epoch_9") == folder / "epoch_9"
    assert newest_state(tmp_path) is None and newest_state(tmp_path / "none") is None
    for name in ("epoch_9", "epoch_10"):
        (folder / name / "state").mkdir()
        (folder / name / "state" / "progress.json").touch()
    assert newest_state(tmp_path) == folder / "epoch_10"
    prune(folder, None)
    assert len(checkpoints(folder)) == 3
    prune(folder, 2)
    assert [p.name for p in checkpoints(folder)] == ["epoch_10", "epoch_100"] and (folder / "epoch_x").exists()
    prune(folder, 5)
    assert len(checkpoints(folder)) == 2
    prune(folder, 1, [folder / "epoch_10"])
    assert len(checkpoints(folder)) == 2, "what was just written stays"


def test_the_run_folder_of_another_program_has_its_checkpoints_by_another_name(tmp_path: Path) -> None:
    for place in ("checkpoint-9", "checkpoint-10", "checkpoints/checkpoint-20", "checkpoints/abandoned-1/epoch_99"):
        (tmp_path / place).mkdir(parents=True)
        assert newest(tmp_path).name == place.rsplit("/")[-1].replace("epoch_99", "checkpoint-20")


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
