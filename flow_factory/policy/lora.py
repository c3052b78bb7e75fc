"""Several trained networks over one frozen base: a LoRA each, one of which computes at a time.

The policy is peft's adapter `default`; another network's adapter has the network's name. All of them stay trainable, so that engines see
one set of weights whichever is at work.
"""

import re
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import nn

from flow_factory.config import ModelConfig
from flow_factory.policy.precision import round_lora

MAIN, DEFAULT = "policy", "default"
ADAPTER = re.compile(r"\.lora_[AB]\.(\w+)\.")


def add_loras(module: Any, targets: Sequence[str], config: ModelConfig, seed: int, roles: Sequence[str] = ()) -> None:
    """The policy's LoRA, and one for each of the other networks, whose first weights depend on the seed alone."""
    for number, name in enumerate((DEFAULT, *roles)):
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config` attribute")  # several adapters are meant
            torch.manual_seed(seed + number)
            kind = LoraConfig(r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules=list(targets), init_lora_weights="gaussian")
            module.add_adapter(kind, name)
    select(lora_layers([module]), MAIN)
    for name, p in module.named_parameters():
        p.requires_grad_(p.requires_grad or ADAPTER.search(name) is not None)  # peft leaves those of the last one alone trainable
    round_lora(module)


def role_of(parameter: str) -> str:
    """Whose weight this is, by its name in the policy."""
    found = ADAPTER.search(parameter)
    return MAIN if found is None or found[1] == DEFAULT else found[1]


def lora_layers(models: Iterable[nn.Module]) -> list[LoraLayer]:
    """The layers of these models that have adapters."""
    return [layer for model in models for layer in model.modules() if isinstance(layer, LoraLayer)]


def select(layers: Iterable[LoraLayer], role: str) -> None:
    """Has the network of this role compute. Unlike peft's `set_adapter` it leaves `requires_grad` alone."""
    for layer in layers:
        layer._active_adapter = [DEFAULT if role == MAIN else role]


def switch(layers: Iterable[LoraLayer], on: bool) -> None:
    """All adapters on, or off: the base alone."""
    for layer in layers:
        layer._disable_adapters = not on
