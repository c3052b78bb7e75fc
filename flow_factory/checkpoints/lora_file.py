"""LoRA files: written for diffusers and for PEFT, read from either, and from trainers that write neither's metadata."""

import inspect
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from diffusers.utils.peft_utils import recurse_remove_peft_layers
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from peft.utils.other import get_pattern_key
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from flow_factory.utils.tensor_file import read_header, write_tensors

LORA_FILE = "pytorch_lora_weights.safetensors"
"""For `pipe.load_lora_weights(folder)`."""
PEFT_FILE = "adapter_model.safetensors"
"""For `PeftModel.from_pretrained(model, folder)`, which knows the same tensors by other names only."""
PEFT_CONFIG = "adapter_config.json"
PREFIXES = ("base_model.model.", "transformer.")
MAGNITUDE = ".lora_magnitude_vector"
UNLIKE = (".dora_scale", ".hada_w1_a", ".lokr_w1", ".lokr_w1_a", ".oft_blocks", ".diff", ".diff_b")
"""Tensors of which other kinds of adapters are made, and of kohya's DoRA, whose norms may be of columns."""
ADAPTERS = (".lora", "_lora.", ".hada_", ".lokr_", ".oft_", ".dora_scale.")
"""What names of an adapter's tensors have in them."""


@dataclass(frozen=True)
class Lora:
    """A LoRA of one transformer."""

    tensors: Mapping[str, Tensor]
    """As PEFT names them within the transformer: `<layer>.lora_A.weight` (rank, in), `<layer>.lora_B.weight` (out, rank), and of a DoRA
    `<layer>.lora_magnitude_vector` (out,)."""
    alpha: float | None
    """None where nothing says it: then every layer's scale is 1, as diffusers has it."""
    alphas: Mapping[str, float] = field(default_factory=dict)
    """Of layers that have another one."""
    rslora: bool = False
    """Whether alpha is divided by the root of the rank."""
    unlike: str | None = None
    """A kind of LoRA that is not computed here."""

    def rank(self, layer: str) -> int:
        return len(self.tensors[f"{layer}.lora_A.weight"])

    def scale_of(self, layer: str) -> float:
        """What the product of a layer's matrices is multiplied by."""
        rank = self.rank(layer)
        alpha = self.alphas.get(layer, self.alpha)
        return 1.0 if alpha is None else alpha / (math.sqrt(rank) if self.rslora else rank)

    @property
    def dora(self) -> bool:
        """Whether it has magnitudes."""
        return any(name.endswith(MAGNITUDE) for name in self.tensors)

    @property
    def layers(self) -> list[str]:
        return sorted({name.partition(".lora_")[0] for name in self.tensors})

    @property
    def ranks(self) -> list[int]:
        return sorted({len(t) for name, t in self.tensors.items() if ".lora_A." in name})


def lora_file(folder: Path) -> Path | None:
    """The file that a folder keeps a LoRA in."""
    return next((folder / name for name in (LORA_FILE, PEFT_FILE) if (folder / name).is_file()), None)


def holds_lora(file: Path) -> bool:
    """Whether a safetensors file is of an adapter, and not of all weights, by the names of its tensors.

    Raises:
        OSError, ValueError: it cannot be read or is damaged.
    """
    names = list(read_header(file))
    return not names or any(part in f"{name}." for name in names for part in ADAPTERS)


def lora_in(module: Any, weights: Mapping[str, Tensor] | None = None) -> Lora:
    """What a model has, or these weights of it in its place."""
    tensors = get_peft_model_state_dict(module, state_dict=None if weights is None else dict(weights))
    return read_tensors(tensors, module.peft_config["default"].to_dict())


def some_of(layers: Sequence[str], most: int = 3) -> str:
    """The first layers, for a message, and how many more there are."""
    return ", ".join(layers[:most]) + (f" and {len(layers) - most} more" if len(layers) > most else "")


def read_lora(file: Path) -> Lora:
    """A LoRA from a safetensors file, with what diffusers' metadata, PEFT's config beside it, or tensors named alpha say of its scale.

    Raises:
        OSError, SafetensorError, ValueError: the file, its metadata or the config beside it is damaged.
    """
    with safe_open(file, "pt") as opened:
        metadata = _object((opened.metadata() or {}).get("lora_adapter_metadata", "{}"))
    if file.name == PEFT_FILE and (file.parent / PEFT_CONFIG).is_file():
        metadata = _object((file.parent / PEFT_CONFIG).read_text(encoding="utf-8"))
    metadata = {name.removeprefix("transformer."): value for name, value in metadata.items()}
    return read_tensors(load_file(file), metadata)


def read_tensors(named: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Lora:
    """A LoRA from the tensors of a file.

    Args:
        metadata: PEFT's config of it, as far as the file has one.

    Raises:
        ValueError: what it says is damaged.
    """
    tensors = {plain_name(name): tensor for name, tensor in named.items()}
    alphas = {name.removesuffix(".alpha"): float(t) for name, t in tensors.items() if name.endswith(".alpha") and t.numel() == 1}
    weights = {name: tensor for name, tensor in tensors.items() if not name.endswith(".alpha")}
    unlike = next((name.rpartition(".")[2] for name in weights if name.endswith(UNLIKE)), None)
    if metadata.get("use_dora") and not any(name.endswith(MAGNITUDE) for name in weights):
        unlike = "use_dora, and no magnitudes"
    alpha = metadata.get("lora_alpha")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float | None):
        raise ValueError(f"lora_alpha is {str(alpha)[:40]!r}, no number")
    found = Lora(weights, alpha, rslora=bool(metadata.get("use_rslora")), unlike=unlike)
    pattern = metadata.get("alpha_pattern") or {}
    if not isinstance(pattern, dict) or not all(isinstance(value, int | float) for value in pattern.values()):
        raise ValueError("alpha_pattern must be an object of numbers")
    for layer in found.layers if pattern else ():
        key = get_pattern_key(list(pattern), layer)
        alphas |= {layer: float(pattern[key])} if key in pattern else {}
    return replace(found, alphas=alphas)


def save_lora(folder: Path, module: Any, weights: Mapping[str, Tensor], pipeline: Any) -> None:
    """Writes both files, and PEFT's config."""
    folder.mkdir(parents=True, exist_ok=True)
    layers = {k: v.contiguous() for k, v in lora_in(module, weights).tensors.items()}
    config = module.peft_config["default"]
    metadata = diffusers_header(config, {"format": "pt"})

    def write(tensors: Mapping[str, Tensor], path: str) -> None:
        write_tensors(Path(path), tensors, metadata)

    if knows_transformers(pipeline):
        pipeline.save_lora_weights(folder, transformer_lora_layers=layers, save_function=write)
    else:  # for `pipe.transformer.load_lora_adapter(folder, use_safetensors=True)`
        write({f"transformer.{k}": v for k, v in layers.items()}, str(folder / LORA_FILE))
    write_peft(folder, layers, config, {"format": "pt"})


def write_peft(folder: Path, layers: Mapping[str, Tensor], config: LoraConfig, metadata: Mapping[str, str]) -> None:
    """Writes the file and the config that `PeftModel.from_pretrained` reads.

    Args:
        layers: as `Lora.tensors`.
        metadata: the header of the file.
    """
    write_tensors(folder / PEFT_FILE, {f"base_model.model.{name}": tensor for name, tensor in layers.items()}, metadata)
    (folder / PEFT_CONFIG).write_text(json.dumps(_plain(config), indent=2, sort_keys=True), encoding="utf-8")


def diffusers_header(config: LoraConfig, metadata: Mapping[str, str]) -> dict[str, str]:
    """The header of a LoRA file with what diffusers reads of its config."""
    adapter = {f"transformer.{name}": value for name, value in _plain(config).items()}
    return {**metadata, "lora_adapter_metadata": json.dumps(adapter, sort_keys=True)}


def _plain(config: LoraConfig) -> dict[str, Any]:
    """PEFT's config as JSON has it."""
    return {name: sorted(value) if isinstance(value, set) else value for name, value in config.to_dict().items()}


def knows_transformers(pipeline: Any) -> bool:
    """Whether the pipeline's own methods for LoRAs write and read those of a transformer; PRX has only those for a U-Net."""
    writer = getattr(pipeline, "save_lora_weights", None)
    return writer is not None and "transformer_lora_layers" in inspect.signature(writer).parameters


def put_by_peft(module: Any, file: Path) -> None:
    """Adds a LoRA of ours to a transformer to which diffusers gives no methods for adapters. A LoRA that is there is removed.

    Raises:
        OSError, ValueError, SafetensorError, RuntimeError: the file or PEFT's config beside it is missing, damaged or does not fit.
    """
    if getattr(module, "peft_config", None):
        recurse_remove_peft_layers(module)
        del module.peft_config
    inject_adapter_in_model(LoraConfig.from_pretrained(str(file.parent)), module, "default")
    set_peft_model_state_dict(module, dict(read_lora(file).tensors), "default")


def plain_name(name: str) -> str:
    """Of a LoRA's tensor in a transformer, as `Lora.tensors` has it."""
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    if MAGNITUDE in name:
        return name.partition(MAGNITUDE)[0] + MAGNITUDE
    return re.sub(r"\.(lora_[AB])\.default\.", r".\1.", name).replace(".lora_down.", ".lora_A.").replace(".lora_up.", ".lora_B.")


def kind_of_layer(layer: str) -> str:
    """A layer's name within its block."""
    return re.sub(r"^.*?\.\d+\.", "", layer, count=1)


def _object(text: str) -> dict[str, Any]:
    """Raises:
    ValueError: the text is not a JSON object.
    """
    parsed = json.loads(text)
    if not isinstance(parsed, dict):
        raise ValueError("its LoRA metadata must be a JSON object")
    return parsed
