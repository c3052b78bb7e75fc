"""The layers of the tiny FLUX.1, and a LoRA of it."""

from torch import nn

from tests.tiny.flux import flux_pipeline

LORA = {"finetune_type": "lora", "target_modules": ("default",)}


def linear_layers(module: nn.Module) -> dict[str, nn.Linear]:
    return {name: m for name, m in module.named_modules() if isinstance(m, nn.Linear)}


def transformer() -> nn.Module:
    return flux_pipeline().transformer
