"""In which dtype what is trained computes: as a stock pipeline in the run's precision does with the saved weights, to the bit.

Such a pipeline has no autocast. That would bring to 16 bits what diffusers keeps in float32 (Wan's time embedding), and on a GPU to float32
what it leaves in 16 bits (norms). A LoRA that it loads has the dtype of the layers that it belongs to.
"""

from functools import partial
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from flow_factory.config import ModelConfig
from flow_factory.models.loading import DTYPES


class Rounded(nn.Linear):
    """A matrix of a LoRA: it computes in the dtype of what comes in, which is the layer's, whatever dtype it is trained in."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype))


def round_lora(module: nn.Module) -> None:
    """Has every LoRA layer of a model compute as the same weights do once they are saved, and loaded by a stock pipeline."""
    for layer in module.modules():
        if isinstance(layer, LoraLayer):
            layer.cast_input_dtype_enabled = False
            for matrix in (*layer.lora_A.values(), *layer.lora_B.values()):
                matrix.__class__ = Rounded


def autocast_of(config: ModelConfig, precision: str) -> torch.dtype | None:
    """The dtype of autocast around what is trained; None: there is none. It is for weights that are trained in a wider dtype themselves.

    Args:
        precision: mixed_precision of the run.
    """
    frozen = DTYPES[precision]
    wider = config.finetune_type == "full" and DTYPES[config.master_weight_dtype] != frozen
    return frozen if wider and frozen != torch.float32 else None


def cast(module: nn.Module, config: ModelConfig, frozen: torch.dtype) -> None:
    """Trained weights to their own dtype, and the frozen ones beside them back from it."""
    for name, p in module.named_parameters():
        if p.requires_grad:
            p.data = p.data.to(DTYPES[config.master_weight_dtype])
        elif config.finetune_type == "full" and not stays_precise(module, name):  # loaded like the master weights
            p.data = p.data.to(frozen)


def stays_precise(module: Any, name: str) -> bool:
    """Whether diffusers keeps a part of a model in float32 whatever the pipeline's dtype."""
    return not {*(module._keep_in_fp32_modules or ())}.isdisjoint(name.split("."))


def shield(module: nn.Module) -> None:
    """Keeps autocast out of the parts that diffusers keeps in float32."""
    for name, part in module.named_modules():
        if stays_precise(module, name) and not stays_precise(module, name.rpartition(".")[0]):
            part.forward = partial(_precisely, part.forward)


def _precisely(forward: Any, *args: Any, **kwargs: Any) -> Any:
    def widened(x: Tensor) -> Tensor:
        return x.float() if x.is_floating_point() else x

    device = next((x.device.type for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), "cpu")
    with torch.autocast(device, enabled=False):
        return forward(*tree_map_only(Tensor, widened, args), **tree_map_only(Tensor, widened, kwargs))
