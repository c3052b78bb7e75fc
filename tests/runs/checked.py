"""Starts and checks that are refused alike."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from flow_factory.check import check
from flow_factory.config import load_config
from flow_factory.utils.errors import UserError
from tests.tiny.run import tiny, write_rows


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def files(folder: Path) -> dict[str, bytes]:
    """What is in a folder, but for the bytecode of the modules there."""
    found = [p for p in folder.rglob("*") if "__pycache__" not in p.parts]
    return {str(p): p.read_bytes() if p.is_file() and not p.is_symlink() else b"" for p in found}


def refused_alike(folder: Path, *overrides: str) -> str:
    """The line with which both refuse."""
    before = files(folder)
    said = {refusal(lambda: check(load_config(folder / "tiny.yaml", overrides))), refusal(lambda: tiny(folder, *overrides))}
    assert len(said) == 1
    assert {k: v for k, v in files(folder).items() if not k.endswith("media.jsonl") and k != str(folder / "cache")} == before
    return said.pop()


KONTEXT = ("model.model_name_or_path={kontext}", "model.model_type=flux1-kontext", "train.max_sequence_length=32")
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


def small_picture(tmp_path: Path) -> None:
    write_rows(tmp_path / "data" / "train.jsonl", [{"prompt": "a", "image": "a.png"}])
    write_rows(tmp_path / "data" / "test.jsonl", [{"prompt": "a", "image": "a.png"}])
    (tmp_path / "data" / "images").mkdir()
    Image.new("RGB", (200, 10)).save(tmp_path / "data" / "images" / "a.png")


def rewritten(file: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
