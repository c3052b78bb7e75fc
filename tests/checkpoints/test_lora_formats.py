"""LoRAs in other programs' formats, read back by diffusers' own converters of those programs' names."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import HunyuanVideoTransformer3DModel, LTXVideoTransformer3DModel
from diffusers.loaders import single_file_utils as stock
from safetensors.torch import load_file
from torch import Tensor, nn

from flow_factory.checkpoints.checkpoint import CheckpointError
from flow_factory.checkpoints.lora_file import Lora, lora_in, read_tensors
from flow_factory.checkpoints.lora_formats import original, write_lora
from flow_factory.checkpoints.lora_formats import widths as widths_of
from flow_factory.checkpoints.lora_names import by_module_names
from flow_factory.checkpoints.original_names import targets_of
from flow_factory.checkpoints.original_tables import KNOWN
from tests.models.harness import lora as with_lora
from tests.tiny.breadth.wan_kin import wan_vace
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
    "ltx": stock.convert_ltx_transformer_checkpoint_to_diffusers,
    "hunyuan": stock.convert_hunyuan_video_transformer_to_diffusers,
    "vace": stock.convert_wan_transformer_to_diffusers,
}  # fmt: skip
"""What diffusers reads the authors' checkpoints with, for `from_single_file`."""


class Zeros(dict[str, Tensor]):
    """A checkpoint all of whose other tensors are zeros: the readers want every key."""

    def pop(self, key: str, *_: Any) -> Tensor:  # type: ignore[override]
        return super().pop(key, torch.zeros(21504, 1))

    def __missing__(self, key: str) -> Tensor:
        return torch.zeros(21504, 1)


def hunyuan() -> Any:
    tiny = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1, "num_single_layers": 1, "num_refiner_layers": 1}
    return HunyuanVideoTransformer3DModel(
        **tiny, rope_axes_dim=(2, 2, 4), text_embed_dim=8, pooled_projection_dim=8, in_channels=4, out_channels=4
    )


def ltx() -> Any:
    tiny = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1, "cross_attention_dim": 16, "caption_channels": 8}
    return LTXVideoTransformer3DModel(**tiny, in_channels=4, out_channels=4)


def transformer(name: str) -> Any:
    own = {"ltx": ltx, "hunyuan": hunyuan, "vace": lambda: wan_vace().transformer}
    return own[name]() if name in own else PIPELINES[name]().transformer


def widths(name: str) -> tuple[str, dict[str, tuple[int, int]]]:
    """A transformer's class, and shapes of its linear layers; those of single blocks are FLUX's own, which readers expect."""
    module: nn.Module = transformer(name)
    shapes = {layer: tuple(m.weight.shape) for layer, m in module.named_modules() if isinstance(m, nn.Linear) and not unnamed(name, layer)}
    if name in ("flux1", "chroma", "hunyuan"):
        for layer in shapes:
            if layer.startswith("single_") and layer.endswith(("to_q", "to_k", "to_v", "proj_mlp")):
                shapes[layer] = (12288 if layer.endswith("mlp") else 3072, 8)
    return type(module).__name__, shapes


def unnamed(name: str, layer: str) -> bool:
    """The norms of HunyuanVideo's text refiner, whose name is that of the last norm with its halves the other way round."""
    return name == "hunyuan" and "refiner" in layer and layer.endswith("norm_out.linear")


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


@pytest.mark.parametrize("format", ["comfyui", "kohya"])
@pytest.mark.parametrize("name", [name if name == "flux1" else pytest.param(name, marks=pytest.mark.exhaustive) for name in READERS])
def test_a_file_of_another_program_comes_back_to_the_bit(name: str, format: str) -> None:
    """With an alpha for each layer, also of layers that the original code has in one piece."""
    module = transformer(name)
    linear = {layer: tuple(m.weight.shape) for layer, m in module.named_modules() if isinstance(m, nn.Linear)}
    lora = lora_of({layer: shape for layer, shape in linear.items() if not unnamed(name, layer)})
    if format == "kohya" and not KNOWN[type(module).__name__].kohya:
        pytest.skip("there is no such format")
    raw, _ = original(lora, format, type(module).__name__, widths_of(module))
    read = by_module_names("file", read_tensors(raw, {}), module)
    assert read.tensors.keys() == lora.tensors.keys()
    for layer in lora.layers:
        change = [found.tensors[f"{layer}.lora_B.weight"] @ found.tensors[f"{layer}.lora_A.weight"] for found in (read, lora)]
        assert torch.equal(change[0] * read.scale_of(layer), change[1] * lora.scale_of(layer)), layer
        assert len(read.tensors[f"{layer}.lora_A.weight"]) == RANK


def test_a_fused_layer_of_a_trainer_is_split_and_another_models_layer_is_named() -> None:
    """As trainers write it whose qkv is one layer: the parts share lora_A, and each has its rows of lora_B."""
    module = PIPELINES["flux1"]().transformer
    down, up = torch.randn(3, 32), torch.randn(96, 3)
    raw = {"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": down, "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": up}
    raw["lora_unet_double_blocks_0_img_attn_qkv.alpha"] = torch.tensor(1.5)
    read = by_module_names("file", read_tensors(raw, {}), module)
    assert read.layers == [f"transformer_blocks.0.attn.to_{part}" for part in "kqv"]
    for k, part in enumerate("qkv"):
        layer = f"transformer_blocks.0.attn.to_{part}"
        assert torch.equal(read.tensors[f"{layer}.lora_A.weight"], down)
        assert torch.equal(read.tensors[f"{layer}.lora_B.weight"], up[32 * k : 32 * k + 32]) and read.scale_of(layer) == 0.5
    raw = {name.replace("double_blocks_0", "joint_blocks_7"): t for name, t in raw.items()}
    with pytest.raises(CheckpointError, match="it is of another model than FluxTransformer2DModel, with lora_unet_joint_blocks_7_img_attn"):
        by_module_names("file", read_tensors(raw, {}), module)


FAMILIES = {
    "sd3-5": "sd3", "qwen-image": "qwen_image", "flux2": "flux2", "flux2-klein": "flux2", "z-image": "z_image",
    "wan21-t2v": "wan21_i2v", "wan21-i2v": "wan21_i2v", "wan22-a14b-t2v": "wan21_i2v", "ltx2-t2av": "ltx2_t2av", "hidream": "hidream",
}  # fmt: skip

"""Cases of families other than FLUX.1, which the stock pipeline itself reads in the test of `ff-export`, and their reader above."""
FAST = ("sd3-5", "qwen-image")


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.exhaustive] * (name not in FAST)) for name in FAMILIES])
def test_a_family_computes_the_same_velocity_with_the_exported_file(tmp_path: Path, name: str) -> None:
    """What ComfyUI adds to the weights by a file, by the names of diffusers' reader, in float32, beside the trained LoRA."""
    t, policy = with_lora(name)
    step = t.roll()[1].kept[0]
    wanted, before = t.velocity(step).detach(), {key: v.clone() for key, v in policy.components.state_dict().items()}
    with policy.disable_adapter():
        assert (t.velocity(step) - wanted).abs().max() > 1e-2, "the LoRA does something"
    formats = ["comfyui", *["kohya"] * all(KNOWN[type(module).__name__].kohya for module in policy.models.values())]
    for format in formats:
        try:
            for component, module in policy.models.items():
                add_as_comfyui(tmp_path / f"{component}_{format}.safetensors", format, component, module, READERS[FAMILIES[name]])
            with policy.disable_adapter():
                found = t.velocity(step)
        finally:
            policy.components.load_state_dict(before)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def add_as_comfyui(file: Path, format: str, component: str, module: Any, reader: Callable[..., dict[str, Tensor]]) -> None:
    """Writes the LoRA of a transformer, and adds to its base weights what the file says."""
    kind, lora = type(module).__name__, lora_in(module)
    write_lora(file, lora, format, component, kind, widths_of(module))  # type: ignore[arg-type]
    added = changes(load_file(file), {"comfyui": "diffusion_model.", "kohya": "lora_unet_"}[format])
    names = [target.name for target in targets_of(KNOWN[kind], lora.layers, widths_of(module))]
    dotted = {f"{key.replace('.', '_')}.weight": f"{key}.weight" for key in names}
    read = reader(Zeros({dotted.get(key, key): change for key, change in added.items()}))
    for layer in lora.layers:
        module.get_submodule(layer).base_layer.weight.data += read[f"{layer}.weight"]
