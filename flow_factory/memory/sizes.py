"""Sizes of a pipeline's weights, counted on the meta device without loading."""

import copy
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
from flow_factory.policy.targets import dead_ends, reached, target_names
from flow_factory.utils.offload import store_in_8_bits
from flow_factory.utils.stock_dtypes import stays_precise
from flow_factory.utils.tensor_file import Stored, read_header

NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes a weight: 4 bits, a scale of a byte for 64 weights, and one of four bytes for 256 scales."""
WHOLE = re.compile(r"(diffusion_pytorch_)?model(-\d+-of-\d+)?\.safetensors")
"""Names of the files that are loaded; others are variants of the same weights."""
ROW = {"bnb_8bit": 4, "torchao_int8": 5} | dict.fromkeys(DYNAMIC, 4)
"""Bytes that a row of 8-bit weights has beside them: a float32 scale, and torchao's zero point."""


@dataclass(frozen=True)
class Weights:
    """In bytes where nothing else is said, before an engine shares them out."""

    trained: int
    """Parameters of all trained components."""
    frozen: float
    """Of the trained components."""
    experts: float
    """Transformers that are not trained."""
    rest: float
    """All other parts that stay: the VAE and its like."""
    encoders: float
    layers: int
    """Blocks of one transformer."""
    block: float
    """The largest of them, its trained weights included, as FSDP2 gathers it: in the dtypes in which it computes."""
    root: float
    """What is in none of them, of all transformers."""
    gathered: float
    """All blocks of all transformers and what is in none, likewise."""
    brought: float
    """What is brought from fewer bits to mixed_precision at a time, while gradients are computed."""


Files = Mapping[str, Mapping[str, float]]
"""Of the parts of a checkpoint: the format's name of a dtype -> bytes of the weights that the files have in it."""


def stored_parameters(checkpoint: Path) -> dict[str, float]:
    """Parameters of each part of a checkpoint on disk, from the headers of its safetensors files."""
    counts: dict[str, float] = defaultdict(float)
    for part, tensor in _headers(checkpoint):
        counts[part] += math.prod(tensor.shape)
    return dict(counts)


def stored_files(checkpoint: Path) -> dict[str, dict[str, float]]:
    """See `Files`, likewise."""
    sizes: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for part, tensor in _headers(checkpoint):
        sizes[part][tensor.dtype] += tensor.end - tensor.begin
    return {part: dict(found) for part, found in sizes.items()}


def _headers(checkpoint: Path) -> Iterator[tuple[str, Stored]]:
    for file in sorted(checkpoint.glob("*/*.safetensors")):
        if WHOLE.fullmatch(file.name):
            yield from ((file.parent.name, tensor) for tensor in read_header(file).values())


def shape_of(family: type[ModelAdapter], component: str, checkpoint: Path | None, name: str = "") -> Any:
    """The transformer without its weights; that of a known checkpoint of this name where there is none on disk."""
    cls = family.transformer_class()
    config: dict[str, Any] = dict(family.published_as(name)[1])
    if checkpoint is not None:
        config = cls.load_config(checkpoint / component)
    with init_empty_weights():
        return cls.from_config(config)


def weights_of(config: RunConfig, family: type[ModelAdapter], parameters: Mapping[str, float], module: Any) -> Weights:
    """A pipeline's weights under a config.

    Args:
        parameters: of each part of the checkpoint.
        module: the (first) trained transformer, on the meta device; other experts are its twins.
    """
    model, half = config.model, DTYPES[config.mixed_precision]
    counts = trained_of(model, family, module)
    stored = stored_bytes(module, half, model.quantization, model.layerwise_casting)
    dense = stored_bytes(module, half)
    fewer = {name: dense[name] for name, size in stored.items() if size < dense[name]}
    master = DTYPES[model.master_weight_dtype].itemsize
    frozen = {name: size for name, size in stored.items() if name not in counts}  # a LoRA's names are those of layers
    widths = {name: min(master, 4 if stays_precise(module, name) else half.itemsize) for name in counts}
    blocks = by_block(module, frozen | {name: n * widths[name] for name, n in counts.items()})
    root = blocks.pop("", 0.0)
    single = keeps_no_copy(model.quantization or "")  # it goes back through the weights as they are kept, layer by layer
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
        brought=max((fewer if single else by_block(module, fewer)).values(), default=0.0),
    )


def stored_bytes(module: Any, dtype: torch.dtype, quantization: str | None = None, casting: str | None = None) -> dict[str, float]:
    """Bytes of each weight of a frozen transformer as `model.quantization` or `model.layerwise_casting` keeps it.

    Args:
        module: on the meta device.
        dtype: mixed_precision's.
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
    """Sums of what is in each of a transformer's blocks; "" is the rest."""
    lists = {name for name, m in module.named_children() if isinstance(m, nn.ModuleList)}
    sums: dict[str, float] = defaultdict(float)
    for name, size in sizes.items():
        head, number, *_ = [*name.split("."), ""]
        sums[f"{head}.{number}" if head in lists else ""] += size
    return sums


def width_of(config: Any) -> int:
    """Values of one token between the transformer's layers, under any of diffusers' names."""
    heads = config.get("num_attention_heads")
    return heads * config["attention_head_dim"] if heads and "attention_head_dim" in config else config.get("hidden_size") or config["dim"]


def trained_of(model: ModelConfig, family: type[ModelAdapter], module: nn.Module) -> dict[str, int]:
    """How many parameters the config trains in one component: by weight, or beside which layer."""
    names = target_names(module, model.target_components[0], model.target_modules, family.targets_in(module))
    dead = dead_ends(module, family.dead_ends)
    linears = {name: m for name, m in module.named_modules() if isinstance(m, nn.Linear) and reached(name, dead)}
    if model.finetune_type == "lora":
        chosen = linears if names is None else {name: linears[name] for name in names if name in linears}
        return {name: model.lora_rank * (m.in_features + m.out_features) for name, m in chosen.items()}
    weights = {name: p.numel() for name, p in module.named_parameters() if reached(name, dead)}
    return weights if names is None else {name: n for name, n in weights.items() if name.rpartition(".")[0] in names}
