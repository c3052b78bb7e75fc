"""A pipeline that does not load is one sentence that names the key, the folder and the reason."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from flow_factory.models.flux1 import Flux1
from flow_factory.models.loading import LoadError, load_adapter, load_pipeline
from tests.tiny.run import checkpoint


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:50])


def renamed(file: Path, key: str) -> None:
    file.write_text(file.read_text().replace(f'"{key}"', f'"{key}s"'))


@pytest.mark.parametrize(("spoil", "reason"), [
    (lambda p: [shutil.rmtree(f) if f.is_dir() else f.unlink() for f in p.iterdir()], "no file named model_index.json"),
    (lambda p: (p / "model_index.json").write_text("{"), "not a valid JSON file"),
    (lambda p: (p / "transformer" / "config.json").write_text("{"), "transformer/config.json' is not a valid JSON file"),
    (lambda p: (p / "transformer" / "diffusion_pytorch_model.safetensors").unlink(), "no file named diffusion_pytorch_model"),
    (lambda p: (p / "text_encoder" / "model.safetensors").unlink(), "no file named model.safetensors"),
    (lambda p: cut(p / "transformer" / "diffusion_pytorch_model.safetensors"), "Unable to load weights"),
    (lambda p: cut(p / "text_encoder" / "model.safetensors"), ""),
    (lambda p: shutil.rmtree(p / "vae"), "no file named config.json"),
    (lambda p: renamed(p / "vae" / "config.json", "block_out_channels"), "index out of range"),
])  # fmt: skip
def test_a_pipeline_that_does_not_load_is_one_sentence(
    flux_folder: Path, tmp_path: Path, spoil: Callable[[Path], Any], reason: str
) -> None:
    folder = shutil.copytree(flux_folder, tmp_path / "flux")
    spoil(folder)
    with pytest.raises(LoadError, match=rf"model.model_name_or_path: .*'{folder}' does not load as FluxPipeline: \w") as error:
        load_pipeline(str(folder), Flux1, torch.float32)
    assert reason.replace("\\", "") in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("dtype", "trained"), [("fp32", None), ("bf16", None), ("bf16", "fp32")])
def test_single_parts_may_be_loaded_in_a_dtype_of_their_own(flux_folder: Path, dtype: str, trained: str | None) -> None:
    adapter = load_adapter(str(flux_folder), "flux1", dtype, {"transformer": trained} if trained else None, {"shift": 5.0})
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16}
    assert {p.dtype for p in adapter.field.bare["transformer"].parameters()} == {kinds[trained or dtype]}
    assert {p.dtype for part in (adapter.pipe.vae, adapter.pipe.text_encoder) for p in part.parameters()} == {kinds[dtype]}
    assert adapter.pipe.scheduler.config.shift == 5.0 and adapter.pipe.scheduler.config.use_dynamic_shifting


def test_a_dtype_is_a_name_or_torchs(tmp_path: Path) -> None:
    for wrong in ("float16x", torch.int8):
        with pytest.raises(LoadError, match=r"dtype: '?[\w.]+'? is not one of fp32, bf16, fp16"):
            load_adapter("absent", "flux1", wrong)
    assert load_adapter(checkpoint(), "flux1", torch.bfloat16).pipe.transformer.dtype is torch.bfloat16
