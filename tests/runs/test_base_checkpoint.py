"""A base checkpoint is looked at before anything is loaded, in a folder or in the hub's cache."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flow_factory.check import check
from flow_factory.config import load_config
from flow_factory.models.loading import LoadError, load_adapter
from tests.runs.checked import KONTEXT, WEIGHTS, refusal, refused_alike, rewritten, small_picture
from tests.tiny.hub import cached
from tests.tiny.pipelines import saved
from tests.tiny.run import checkpoint, write_run

Spoil = Callable[[Path], object]


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def sharded(folder: Path) -> None:
    """An index whose second file is not there."""
    file = folder / WEIGHTS
    names = list(load_file(file))
    file.rename(file.with_name("a.safetensors"))
    places = dict.fromkeys(names, "a.safetensors") | {names[0]: "b.safetensors"}
    file.with_name(f"{file.name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


CHECKPOINTS: dict[str, tuple[Spoil, str]] = {
    "truncated": (lambda f: cut(f / WEIGHTS), f"{WEIGHTS} is truncated or damaged: .* bytes, and its header says"),
    "truncated encoder": (lambda f: cut(f / "text_encoder/model.safetensors"), "model.safetensors is truncated"),
    "empty": (lambda f: (f / WEIGHTS).write_bytes(b""), f"{WEIGHTS} is damaged: its header cannot be read"),
    "no header": (lambda f: (f / WEIGHTS).write_bytes(b"hello, world" * 99), f"{WEIGHTS} is damaged"),
    "a deep header": (lambda f: (f / WEIGHTS).write_bytes(b"\x10\x27" + bytes(6) + b"[" * 10_000), f"{WEIGHTS} is damaged"),
    "missing": (lambda f: (f / WEIGHTS).unlink(), "transformer has no diffusion_pytorch_model.safetensors, only config.json"),
    "missing shard": (sharded, "b.safetensors is missing, and .*index.json names it"),
    "missing tensor": (
        lambda f: rewritten(f / WEIGHTS, lambda t: t.pop("proj_out.weight")), "transformer lacks the tensor 'proj_out.weight'",
    ),
    "another shape": (
        lambda f: rewritten(f / WEIGHTS, lambda t: t.update({"proj_out.weight": torch.ones(3)})), r"'proj_out.weight' is \[3\] in the file",
    ),
    "pickles": (
        lambda f: (f / "vae/diffusion_pytorch_model.safetensors").rename(f / "vae/diffusion_pytorch_model.bin"),
        r"vae has its weights as a pickle \(diffusion_pytorch_model.bin\), which can run code",
    ),
    "no tokenizer": (lambda f: shutil.rmtree(f / "tokenizer_2"), "tokenizer_2 is missing: model_index.json names a T5Tokenizer"),
    "half a tokenizer": (lambda f: cut(f / "tokenizer/tokenizer.json"), "tokenizer does not load as CLIPTokenizer"),
    "no encoder's config": (lambda f: (f / "text_encoder/config.json").unlink(), "text_encoder/config.json: No such file"),
    "no index": (lambda f: (f / "model_index.json").write_text("[]"), "does not load as FluxPipeline"),
    "another pipeline": (lambda f: (f / "model_index.json").write_text('{"_class_name": "WanPipeline"}'), "is a WanPipeline, not a Flux"),
}  # fmt: skip


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_a_checkpoint_is_looked_at_before_anything_is_loaded(tmp_path: Path, case: str) -> None:
    write_run(tmp_path)
    spoil, said = CHECKPOINTS[case]
    folder = shutil.copytree(checkpoint(), tmp_path / "flux")
    spoil(folder)
    assert re.search(f"^model.model_name_or_path: .*{said}", refused_alike(tmp_path, f"model.model_name_or_path={folder}"))


SNAPSHOTS = {
    "truncated": (CHECKPOINTS["truncated"][0], (), f"{WEIGHTS} is truncated or damaged"),
    "another shape": (CHECKPOINTS["another shape"][0], (), r"'proj_out.weight' is \[3\] in the file"),
    "missing": (CHECKPOINTS["missing"][0], (), "has no .*, only config.json; it is not in the hub's cache, and nobody answers"),
    "no encoder's config": (CHECKPOINTS["no encoder's config"][0], (), "config.json: No such file .*; it is not in the hub's cache, and"),
    "a size": (lambda f: None, ("train.resolution=40",), "height 40, width 40"),
    "a narrow picture": (lambda f: None, KONTEXT[1:], r"train.jsonl:1: .*a.png: 200 x 10 pixels: too small; Kontext wants"),
}


@pytest.mark.parametrize("case", SNAPSHOTS)
def test_a_snapshot_of_the_hub_is_checked_as_a_folder_is(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path)
    spoil, overrides, said = SNAPSHOTS[case]
    if "picture" in case:
        small_picture(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot = cached("owner/model", saved("flux1_kontext") if "picture" in case else checkpoint(), tmp_path / "hub")
    given = load_config(tmp_path / "tiny.yaml", ["model.model_name_or_path=owner/model", *overrides])
    if not overrides:
        assert "owner/model: in the hub's cache" in check(given)
    spoil(snapshot)
    for here in (False, True):
        monkeypatch.setattr("flow_factory.utils.pretrained.unreachable", lambda here=here: None if here else "nobody answers")
        if here and "not in the hub" in said:  # a start downloads the rest
            check(given)
        else:
            assert re.search(f"{said}", refusal(lambda: check(given)))


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("part", ["transformer/diffusion_pytorch_model", "text_encoder_2/model", "vae/diffusion_pytorch_model"])
def test_weights_that_are_no_numbers_are_named_when_they_are_loaded(tmp_path: Path, value: str, part: str) -> None:
    folder = shutil.copytree(checkpoint(), tmp_path / "flux")
    last: list[str] = []

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        last.append(next(k for k in reversed(tensors) if tensors[k].ndim > 1))
        tensors[last[0]].view(-1)[3] = float(value)

    rewritten(folder / f"{part}.safetensors", spoil)
    with pytest.raises(LoadError, match=rf"{part.partition('/')[0]}: '.*{last[0].rpartition('.')[0]}.*' is not a number") as error:
        load_adapter(str(folder), "flux1")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("part", "name"), [
    ("text_encoder_2/model", "encoder.block.0.layer.0.SelfAttention.q.weight"), ("vae/diffusion_pytorch_model", "decoder.conv_in.weight"),
    ("text_encoder/model", "text_model.encoder.layers.0.mlp.fc1.weight"),
])  # fmt: skip
def test_weights_that_no_file_has_are_not_drawn_by_chance(tmp_path: Path, part: str, name: str) -> None:
    folder = shutil.copytree(checkpoint(), tmp_path / "flux")
    rewritten(folder / f"{part}.safetensors", lambda t: t.pop(next(k for k in t if k.endswith(name.removeprefix("text_model.")))))
    with pytest.raises(LoadError, match="lacks the tensor|does not load as FluxPipeline"):
        load_adapter(str(folder), "flux1")


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint(), tmp_path / "flux")
    (folder / WEIGHTS).unlink()
    torch.save({"x": torch.ones(1)}, folder / "transformer" / "diffusion_pytorch_model.bin")
    with pytest.raises(LoadError, match="does not load as FluxPipeline"):
        load_adapter(str(folder), "flux1")
