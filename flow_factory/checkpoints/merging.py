"""Trained weights inside the base model's, so that no LoRA is needed to use them."""

from typing import Any

import torch

from flow_factory.checkpoints.checkpoint import CheckpointError
from flow_factory.checkpoints.lora_file import MAGNITUDE, Lora
from flow_factory.checkpoints.lora_formats import updates_of


@torch.no_grad()
def merge_lora(module: Any, lora: Lora, scale: float = 1.0) -> None:
    """Adds a LoRA to a transformer's weights: computed in float32, and rounded once to the dtype of each weight.

    Args:
        scale: of what is added; 1 is as it was trained.

    Raises:
        CheckpointError: a layer is not there, or has another shape.
    """
    linear = dict(module.named_modules())
    for layer, update in updates_of(lora, magnitudes=True).items():
        weight = getattr(linear.get(layer), "weight", None)
        shape = (len(update.up), update.down.shape[1])
        if weight is None or tuple(weight.shape) != shape:
            there = "is not there" if weight is None else f"is {list(weight.shape)} and not {list(shape)}"
            raise CheckpointError(f"the LoRA was trained on another model than {type(module).__name__}: its layer {layer} {there}")
        changed = weight.float() + (update.up.float() @ update.down.float() * (scale * update.scale)).to(weight.device)
        if lora.dora:
            magnitude = lora.tensors[layer + MAGNITUDE].to(weight.device).float()
            changed *= (magnitude / torch.linalg.norm(changed, dim=1))[:, None]
        weight.copy_(changed.to(weight.dtype))
