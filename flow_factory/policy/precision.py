"""The dtypes in which trained modules compute: to the bit those of a stock pipeline that runs the saved weights in the run's precision.

A stock pipeline has no autocast. Autocast would cast to 16 bits what diffusers keeps in float32 (Wan's time embedding). On a GPU it would
also cast to float32 what diffusers leaves in 16 bits (norms, softmax, powers, sums). So trained modules run without autocast. A LoRA that
the pipeline loads has the dtype of its layer.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.dora import DoraLinearLayer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from flow_factory.config import ModelConfig
from flow_factory.models.loading import DTYPES
from flow_factory.models.parts import namesake
from flow_factory.utils.stock_dtypes import dtype_of


class Rounded(nn.Linear):
    """A matrix of a LoRA. It computes in the dtype of its input, which is the layer's, and may be trained in another one."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype))


class RoundedMagnitude(DoraLinearLayer):
    """DoRA's magnitudes of a layer (arXiv 2402.09353). They too compute in the dtype of the input."""

    computes: torch.dtype | None = None

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        p: Any = self._parameters["weight"]
        return p if self.computes is None or isinstance(p, DTensor) else p.to(self.computes)

    def forward(self, x: Tensor, **rest: Any) -> Tensor:
        self.computes = x.dtype
        return super().forward(x, **rest)

    @torch.no_grad()
    def get_lora_weight(self, lora_A: nn.Module, lora_B: nn.Module, adapter_name: str | None = None) -> Tensor:
        """The product of the matrices, (out, in). peft takes only its norm, without gradient."""
        down: Any = lora_A.weight
        return lora_B(lora_A(torch.eye(down.shape[1], device=down.device, dtype=self.computes))).T


def round_lora(module: nn.Module) -> None:
    """Makes every LoRA layer of a model compute as the saved weights do in a stock pipeline."""
    for layer in module.modules():
        if isinstance(layer, LoraLayer):
            layer.cast_input_dtype_enabled = False
            for matrix in (*layer.lora_A.values(), *layer.lora_B.values()):
                matrix.__class__ = Rounded
            for magnitude in layer.lora_magnitude_vector.values():
                magnitude.__class__ = RoundedMagnitude


@torch.no_grad()
def begin_as_base(module: Any, precision: torch.dtype) -> None:
    """Sets DoRA's magnitudes to the norms of the weights in their computing dtype, so that a new LoRA changes nothing.

    peft took the norms of the weights in the file.

    Args:
        module: a transformer with new LoRAs, whose products are still 0.
    """
    for name, layer in module.named_modules():
        for magnitude in layer.lora_magnitude_vector.values() if isinstance(layer, LoraLayer) else ():
            base = layer.get_base_layer().weight
            rows = base.to(dtype_of(module, f"{name}.base_layer.weight", precision))
            p: Any = magnitude._parameters["weight"]
            p.data = torch.linalg.norm(rows, dim=1)


def wanted_dtypes(module: nn.Module, config: ModelConfig, precision: torch.dtype) -> dict[nn.Parameter, torch.dtype]:
    """The dtype in which each weight is to be stored: trained ones in `master_weight_dtype`, frozen ones as in a stock pipeline.

    The weights of a LoRA are cast here already.

    Args:
        precision: `mixed_precision` of the run.
    """
    master, wanted = DTYPES[config.master_weight_dtype], {}
    for name, p in module.named_parameters():
        if p.requires_grad and config.finetune_type == "lora":
            p.data = p.data.to(precision).to(master)  # peft initialises it in the dtype of the layer in the file
        elif config.quantization is None and type(p.data) is Tensor and p.is_floating_point():
            # without the scales of quantised weights, which keep their dtype
            wanted[p] = master if p.requires_grad else dtype_of(module, name, precision)
    if config.finetune_type == "full" and any(p.requires_grad for p in wanted):
        round_weights(module, precision, wanted)
    return wanted


# -- weights that are trained in another dtype than the one that they compute in ---------------------------------------------------------


def round_weights(model: Any, precision: torch.dtype, wanted: Mapping[nn.Parameter, torch.dtype]) -> None:
    """Makes a fully trained diffusers model compute as a stock pipeline computes with the saved weights.

    Its modules read their weights in the dtypes of a stock pipeline. Engines, optimisers and checkpoints see the trained weights.

    Args:
        wanted: the dtypes in which the weights will be stored.
    """
    saved = model.state_dict().keys()
    for name, buffer in model.named_buffers():
        if name in saved:
            buffer.data = buffer.data.to(dtype_of(model, name, precision))
    for name, part in list(model.named_modules()):
        dtypes = {key: dtype_of(model, f"{name}.{key}".lstrip("."), precision) for key, _ in part.named_parameters()}
        if any(wanted.get(p, p.dtype) != dtypes[key] for key, p in part.named_parameters()):
            kind: Any = type(part)
            part.__class__ = rounding(kind, tuple(dtypes.items()), precision if part is model else None)


@cache
def rounding(cls: type[nn.Module], dtypes: tuple[tuple[str, torch.dtype], ...], of_model: torch.dtype | None) -> type[nn.Module]:
    """The class of a module that reads its weights in these dtypes. Modules of the same class and dtypes share it, and so compiled code.

    Args:
        of_model: for a whole model, the value of its `dtype`. It lists its weights as they are stored.
    """

    def named_parameters(self: nn.Module, prefix: str = "", recurse: bool = True, **rest: Any) -> Iterator[tuple[str, Any]]:
        """Models read the computing dtype of their parts from this."""
        for name, p in cls.named_parameters(self, prefix, recurse, **rest):
            yield name, p.to(known[name.removeprefix(f"{prefix}.")]) if recurse else p

    known = dict(dtypes)
    members: dict[str, Any] = {name: property(_rounded(name, dtype)) for name, dtype in dtypes if "." not in name}
    members |= {"named_parameters": named_parameters} if of_model is None else {"dtype": of_model}
    return namesake(cls, members)


def _rounded(name: str, dtype: torch.dtype) -> Callable[[nn.Module], Any]:
    def weight(module: nn.Module) -> Any:
        p: Any = module._parameters[name]
        if isinstance(p, DTensor):  # FSDP2 reads its shard here; a shard computes nothing
            return p
        return p.to(dtype) if p.dtype != dtype else p.view_as(p)  # `view_as`: a gradient is summed in this dtype as if there were a cast

    return weight
