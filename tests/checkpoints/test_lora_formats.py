"""LoRAs in other programs' formats, read back by diffusers' own converters of those programs' names."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from diffusers.loaders import single_file_utils as stock
from torch import Tensor, nn

from flow_factory.checkpoints.checkpoint import CheckpointError
from flow_factory.checkpoints.lora_file import Lora
from flow_factory.checkpoints.lora_formats import original
from tests.tiny.pipelines import PIPELINES

RANK = 2
READERS: dict[str, Callable[..., dict[str, Tensor]]] = {
    "flux1": stock.convert_flux_transformer_checkpoint_to_diffusers,
    "chroma": stock.convert_chroma_transformer_checkpoint_to_diffusers,
    "flux2": stock.convert_flux2_transformer_checkpoint_to_diffusers,
    "sd3": stock.convert_sd3_transformer_checkpoint_to_diffusers,
    "wan21_i2v": stock.convert_wan_transformer_to_diffusers,
    "qwen_image": lambda checkpoint, **_: checkpoint,
    "z_image": lambda checkpoint, **_: checkpoint,  # ComfyUI takes diffusers' names: the fused ones would raise the rank
    "ltx2_t2av": stock.convert_ltx2_transformer_to_diffusers,
    "hidream": stock.convert_hidream_transformer_to_diffusers,
}  # fmt: skip
"""What diffusers reads the authors' checkpoints with, for `from_single_file`."""


class Zeros(dict[str, Tensor]):
    """A checkpoint all of whose other tensors are zeros: the readers want every key."""

    def pop(self, key: str, *_: Any) -> Tensor:  # type: ignore[override]
        return super().pop(key, torch.zeros(21504, 1))


def widths(name: str) -> tuple[str, dict[str, tuple[int, int]]]:
    """A transformer's class, and shapes of its linear layers; those of single blocks are FLUX's own, which readers expect."""
    module: nn.Module = PIPELINES[name]().transformer
    shapes = {layer: tuple(m.weight.shape) for layer, m in module.named_modules() if isinstance(m, nn.Linear)}
    if name in ("flux1", "chroma"):
        for layer in shapes:
            if layer.startswith("single_") and layer.endswith(("to_q", "to_k", "to_v", "proj_mlp")):
                shapes[layer] = (12288 if layer.endswith("mlp") else 3072, 8)
    return type(module).__name__, shapes


def lora_of(shapes: Mapping[str, tuple[int, int]], alpha: float = 4.0) -> Lora:
    g, tensors = torch.Generator().manual_seed(0), {}
    for layer, (out, into) in shapes.items():
        tensors[f"{layer}.lora_A.weight"] = torch.randint(-8, 8, (RANK, into), generator=g).float()
        tensors[f"{layer}.lora_B.weight"] = torch.randint(-8, 8, (out, RANK), generator=g).float()
    return Lora(tensors, alpha)


def changes(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """What a file adds to each weight, as ComfyUI reads it: alpha / rank times the product, by the layer's name."""
    found = {}
    for name, up in tensors.items():
        for ups, downs in (("lora_up", "lora_down"), ("lora_B", "lora_A")):
            if name.endswith(f".{ups}.weight"):
                layer = name.removesuffix(f".{ups}.weight")
                down = tensors[f"{layer}.{downs}.weight"]
                alpha = tensors.get(f"{layer}.alpha", torch.tensor(len(down)))
                found[f"{layer.removeprefix(prefix)}.weight"] = alpha / len(down) * up @ down
    return found


@pytest.mark.parametrize("name", READERS)
def test_every_layer_has_its_place_in_the_original_code(name: str) -> None:
    kind, shapes = widths(name)
    lora = lora_of(shapes)
    tensors, _ = original(lora, "comfyui", kind, shapes.__getitem__)
    assert all(layer.startswith("diffusion_model.") for layer in tensors)
    read = READERS[name](Zeros(changes(tensors, "diffusion_model.")))
    for layer in shapes:
        wanted = 2.0 * lora.tensors[f"{layer}.lora_B.weight"] @ lora.tensors[f"{layer}.lora_A.weight"]
        assert torch.equal(read[f"{layer}.weight"], wanted), layer


def test_a_format_that_does_not_exist_is_refused() -> None:
    lora = lora_of({"blocks.0.to_q": (4, 4)})
    for kind, format in (("SanaTransformer2DModel", "comfyui"), ("LTX2VideoTransformer3DModel", "kohya")):
        with pytest.raises(CheckpointError, match=f"there is no {format} format for LoRAs of {kind}; there is for Flux"):
            original(lora, format, kind, lambda layer: (4, 4))
    with pytest.raises(CheckpointError, match="the layer blocks.0.to_q has no name in the original code"):
        original(lora, "comfyui", "FluxTransformer2DModel", lambda layer: (4, 4))
