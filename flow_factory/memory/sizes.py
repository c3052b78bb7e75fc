"""The sizes of a pipeline's weights, counted on the meta device without loading them."""

import copy
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn

from flow_factory.config import ModelConfig, RunConfig
from flow_factory.config.memory_rules import keeps_no_copy
from flow_factory.models.base import ModelAdapter
from flow_factory.models.loading import DTYPES
from flow_factory.models.quantized_linear import DYNAMIC, layers_in_8_bits
from flow_factory.policy.lora import rank_of
from flow_factory.policy.targets import dead_ends, layers_of_lora, reached, target_names
from flow_factory.utils.errors import UserError
from flow_factory.utils.offload import store_in_8_bits
from flow_factory.utils.stock_dtypes import stays_precise
from flow_factory.utils.tensor_file import Stored, read_header

NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes for each weight: 4 bits, a 1-byte scale for 64 weights, and a 4-byte scale for 256 scales."""
WHOLE = re.compile(r"(diffusion_pytorch_)?model(-\d+-of-\d+)?\.safetensors")
"""The names of the files that are loaded. Other files are variants of the same weights."""
ROW = {"bnb_8bit": 4, "torchao_int8": 5} | dict.fromkeys(DYNAMIC, 4)
"""Additional bytes for each row of 8-bit weights: a float32 scale, and torchao's zero point."""


@dataclass(frozen=True)
class Weights:
    """Sizes in bytes, unless stated otherwise, before an engine shards the weights."""

    trained: int
    """The number of trained parameters of all trained components."""
    frozen: float
    """Frozen weights of the trained components."""
    experts: float
    """The transformers that are not trained."""
    rest: float
    """All other parts that stay loaded, such as the VAE."""
    encoders: float
    layers: int
    """The number of blocks of one transformer."""
    block: float
    """The largest block with its trained weights, as FSDP2 gathers it: in the dtypes in which it computes."""
    root: float
    """The weights outside of blocks, of all transformers."""
    gathered: float
    """All weights of all transformers, as FSDP2 gathers them."""
    brought: float
    """The largest size of weights that are dequantised, or whose rows are measured for DoRA, at a time while gradients are computed."""


Files = Mapping[str, Mapping[str, float]]
"""Part of a checkpoint -> safetensors' name of a dtype -> bytes of the weights that the files store in it."""


def stored_parameters(checkpoint: Path) -> dict[str, float]:
    """The number of parameters of each part of a checkpoint on disk, from the headers of its safetensors files."""
    counts: dict[str, float] = defaultdict(float)
    for part, tensor in _headers(checkpoint):
        counts[part] += math.prod(tensor.shape)
    return dict(counts)


def stored_files(checkpoint: Path) -> dict[str, dict[str, float]]:
    """The `Files` of a checkpoint on disk, from the same headers."""
    sizes: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for part, tensor in _headers(checkpoint):
        sizes[part][tensor.dtype] += tensor.end - tensor.begin
    return {part: dict(found) for part, found in sizes.items()}


def _headers(checkpoint: Path) -> Iterator[tuple[str, Stored]]:
    for file in sorted(checkpoint.glob("*/*.safetensors")):
        if WHOLE.fullmatch(file.name):
            yield from ((file.parent.name, tensor) for tensor in read_header(file).values())


def shape_of(family: type[ModelAdapter], component: str, checkpoint: Path | None, name: str = "") -> Any:
    """The transformer on the meta device; without a checkpoint on disk, that of a known checkpoint of this name.

    Raises:
        UserError: the family trains no component of this name.
    """
    if component not in family.components:
        these = json.dumps([*family.components[:1]])
        raise UserError(f"model.target_components: {family.__name__} trains no {component!r}; write {these}")
    cls = family.transformer_class()
    config: dict[str, Any] = dict(family.published_as(name)[1])
    if checkpoint is not None:
        config = cls.load_config(checkpoint / component)
    with init_empty_weights():
        return cls.from_config(config)


def weights_of(config: RunConfig, family: type[ModelAdapter], parameters: Mapping[str, float], module: Any) -> Weights:
    """The sizes of a pipeline's weights under a config.

    Args:
        parameters: the number of parameters of each part of the checkpoint.
        module: the (first) trained transformer, on the meta device. Other experts are assumed to be equal.
    """
    model, half = config.model, DTYPES[config.mixed_precision]
    counts = trained_of(model, family, module)
    stored = stored_bytes(module, half, model.quantization, model.layerwise_casting)
    dense = stored_bytes(module, half)
    fewer = {name: dense[name] for name, size in stored.items() if size < dense[name]}
    master = DTYPES[model.master_weight_dtype].itemsize
    frozen = {name: size for name, size in stored.items() if name not in counts}  # the keys of a LoRA's counts are layers
    widths = {name: min(master, 4 if stays_precise(module, name) else half.itemsize) for name in counts}
    blocks = by_block(module, frozen | {name: n * widths[name] for name, n in counts.items()})
    root = blocks.pop("", 0.0)
    dora = (norming(module.get_submodule(name)) for name in counts) if model.use_dora else ()
    single = keeps_no_copy(model.quantization or "")  # the backward dequantises layer by layer
    experts = {c: parameters[c] / sum(p.numel() for p in module.parameters()) for c in family.components if parameters.get(c)}
    trained = [c for c in experts if c in model.target_components]
    others = sum(n for part, n in parameters.items() if part not in (*family.encoders, *experts))
    return Weights(
        trained=sum(counts.values()) * len(trained),
        frozen=sum(experts[c] for c in trained) * sum(frozen.values()),
        experts=sum(experts[c] for c in experts if c not in trained) * sum(stored.values()),
        rest=half.itemsize * others,
        encoders=half.itemsize * sum(parameters.get(part, 0) for part in family.encoders),
        layers=len(blocks),
        block=max(blocks.values(), default=0.0),
        root=root * len(experts),
        gathered=(root + sum(blocks.values())) * len(experts),
        brought=max([*(fewer if single else by_block(module, fewer)).values(), *(half.itemsize * n for n in dora)], default=0.0),
    )


def norming(layer: Any) -> int:
    """Elements that are there at once while DoRA takes the norms of a layer's rows: the unit matrix, the product, and two sums with it."""
    return layer.in_features * (layer.in_features + 3 * layer.out_features)


def stored_bytes(module: Any, dtype: torch.dtype, quantization: str | None = None, casting: str | None = None) -> dict[str, float]:
    """The bytes of each weight of a frozen transformer under `model.quantization` or `model.layerwise_casting`.

    Args:
        module: on the meta device.
        dtype: the dtype of mixed_precision.
    """
    twin = copy.deepcopy(module)
    for name, p in twin.named_parameters():
        p.data = p.data.to(torch.float32 if stays_precise(twin, name) else dtype)
    if casting is not None:
        store_in_8_bits(twin, casting, dtype)
    sizes = {name: float(p.numel() * p.element_size()) for name, p in twin.named_parameters()}
    if quantization is None:
        return sizes
    for name, m in layers_in_8_bits(twin) if quantization in DYNAMIC else twin.named_modules():
        if isinstance(m, nn.Linear) and (quantization in DYNAMIC or not stays_precise(twin, name)):
            n = m.weight.numel()
            sizes[f"{name}.weight"] = NF4 * n if quantization == "bnb_4bit" else n + ROW[quantization] * m.out_features
    return sizes


def by_block(module: nn.Module, sizes: Mapping[str, float]) -> dict[str, float]:
    """The sum for each block of a transformer; "" is the sum of the rest."""
    lists = {name for name, m in module.named_children() if isinstance(m, nn.ModuleList)}
    sums: dict[str, float] = defaultdict(float)
    for name, size in sizes.items():
        head, number, *_ = [*name.split("."), ""]
        sums[f"{head}.{number}" if head in lists else ""] += size
    return sums


WIDTHS = ("hidden_size", "dim", "model_dim", "inner_dim", "embed_dim", "joint_attention_dim")
"""What transformers of diffusers call their width, where it is not that of all heads together; the last is about as much."""


def width_of(config: Any) -> int:
    """The width of the transformer.

    Raises:
        UserError: the config has none of the known names for it.
    """
    heads = config.get("num_attention_heads")
    if heads and "attention_head_dim" in config:
        return heads * config["attention_head_dim"]
    if config.get("block_out_channels"):  # of a UNet
        return max(config["block_out_channels"])
    width = next((config[name] for name in WIDTHS if isinstance(config.get(name), int)), None)
    if width is None:
        raise UserError(
            f"{config.get('_class_name', 'the transformer')}: no estimate, because its config names no width ({', '.join(WIDTHS)})"
        )
    return width


def trained_of(model: ModelConfig, family: type[ModelAdapter], module: nn.Module) -> dict[str, int]:
    """The number of trained parameters of one component, by weight, or by layer for a LoRA."""
    if model.finetune_type == "lora":
        linears = {name: m for name, m in module.named_modules() if isinstance(m, nn.Linear)}
        chosen = layers_of_lora(family, module, model.target_components[0], model)
        more = {name: linears[name].out_features if model.use_dora else 0 for name in chosen}
        return {name: rank_of(model, name) * (linears[name].in_features + linears[name].out_features) + more[name] for name in chosen}
    names = target_names(module, model.target_components[0], model.target_modules, family.targets_in(module))
    dead = dead_ends(module, family.dead_ends)
    weights = {name: p.numel() for name, p in module.named_parameters() if reached(name, dead)}
    return weights if names is None else {name: n for name, n in weights.items() if name.rpartition(".")[0] in names}
