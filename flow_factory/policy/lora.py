"""Several trained networks over one frozen base: each is a LoRA, and one is active at a time.

The policy is peft's adapter `default`. The adapter of another network has the network's name. All stay trainable, so that engines see the
same set of weights whichever is active.
"""

import math
import re
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.utils.other import get_pattern_key
from torch import nn

from flow_factory.config import ModelConfig
from flow_factory.policy.precision import round_lora

MAIN, DEFAULT = "policy", "default"
ADAPTER = re.compile(r"\.lora_(?:[AB]|magnitude_vector)\.(\w+)\.")
AS_PEFT = ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "lora_dropout")
"""Keys of `model:` that peft's config has too, with the same meaning."""


def rank_of(config: ModelConfig, layer: str) -> int:
    """The rank of a layer's LoRA."""
    return config.rank_pattern.get(get_pattern_key(list(config.rank_pattern), layer), config.lora_rank)


def scale_of(config: ModelConfig, layer: str) -> float:
    """What the product of a layer's matrices is multiplied by."""
    alpha, rank = config.alpha_pattern.get(get_pattern_key(list(config.alpha_pattern), layer), config.lora_alpha), rank_of(config, layer)
    return alpha / (math.sqrt(rank) if config.use_rslora else rank)


def add_loras(module: Any, targets: Sequence[str], config: ModelConfig, seed: int, roles: Sequence[str] = ()) -> None:
    """Adds the policy's LoRA and one for each other network. Their initial weights depend only on the seed."""
    init: Any = True if config.init_lora_weights == "kaiming" else config.init_lora_weights
    for number, name in enumerate((DEFAULT, *roles)):
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config` attribute")  # there may be several adapters
            torch.manual_seed(seed + number)
            kind = LoraConfig(
                r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules=list(targets), init_lora_weights=init,
                **{key: getattr(config, key) for key in AS_PEFT},
            )  # fmt: skip
            _add(module, kind, name)
    select(lora_layers([module]), MAIN)
    for name, p in module.named_parameters():
        p.requires_grad_(p.requires_grad or ADAPTER.search(name) is not None)  # peft freezes all adapters but the last
    round_lora(module)


def _add(module: Any, config: LoraConfig, name: str) -> None:
    if hasattr(module, "add_adapter"):
        module.add_adapter(config, name)
    else:  # some transformers of diffusers (Lumina, EasyAnimate, PRX) have no methods for adapters
        inject_adapter_in_model(config, module, name)


def role_of(parameter: str) -> str:
    """The network of a parameter, by its name in the policy."""
    found = ADAPTER.search(parameter)
    return MAIN if found is None or found[1] == DEFAULT else found[1]


def lora_layers(models: Iterable[nn.Module]) -> list[LoraLayer]:
    """The layers of these models that have adapters."""
    return [layer for model in models for layer in model.modules() if isinstance(layer, LoraLayer)]


def select(layers: Iterable[LoraLayer], role: str) -> None:
    """Activates the adapter of this role. Unlike peft's `set_adapter` it does not change `requires_grad`."""
    for layer in layers:
        layer._active_adapter = [DEFAULT if role == MAIN else role]


def switch(layers: Iterable[LoraLayer], on: bool) -> None:
    """Enables or disables all adapters; without them the base model computes."""
    for layer in layers:
        layer._disable_adapters = not on
