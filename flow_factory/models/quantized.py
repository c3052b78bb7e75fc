"""The frozen transformers in 8 or 4 bits, by diffusers' own quantisers."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from diffusers import BitsAndBytesConfig, PipelineQuantizationConfig, TorchAoConfig

from flow_factory.models.quantized_linear import DYNAMIC
from flow_factory.utils.errors import UserError

PACKAGES = {"bnb_8bit": "bitsandbytes", "bnb_4bit": "bitsandbytes", "torchao_int8": "torchao"}
"""`model.quantization` -> the package that does it."""
FLOAT8 = (8, 9)
"""Compute capability from which a GPU (Ada, Hopper) multiplies in float8."""


def check_quantization(kind: str | None) -> None:
    """To be asked before anything is loaded.

    Raises:
        UserError: the package is not installed, or works on no processor of this machine.
    """
    if kind is None:
        return
    if kind == "torchao_float8_dynamic":
        require_float8(kind)
    if kind in DYNAMIC:
        return
    package = PACKAGES[kind]
    if find_spec(package) is None:
        raise UserError(f"model.quantization: {kind} needs {package}: pip install 'flow-factory[quantization]'")
    if package == "bitsandbytes" and not (torch.cuda.is_available() or torch.xpu.is_available()):
        raise UserError(f"model.quantization: {kind} needs a GPU, and this machine has none; torchao_int8 works on a CPU")


def require_float8(kind: str) -> None:
    """Raises:
    UserError: no GPU here multiplies in float8 with a scale a row.
    """
    found = torch.cuda.get_device_capability() if torch.cuda.is_available() else None
    if found is None or found < FLOAT8:
        has = "no such GPU" if found is None else f"one of {found[0]}.{found[1]}"
        needs = f"an NVIDIA GPU of compute capability {FLOAT8[0]}.{FLOAT8[1]} or more"
        raise UserError(f"model.quantization: {kind} needs {needs}, and this machine has {has}; torchao_int8_dynamic works on any")


def quantizer(kind: str, components: Sequence[str], dtype: torch.dtype) -> PipelineQuantizationConfig:
    """For the pipeline's `from_pretrained`: the linear layers of these components in fewer bits.

    Args:
        kind: `model.quantization`.
        dtype: in which their layers compute.
    """
    return PipelineQuantizationConfig(quant_mapping={name: _config(kind, dtype) for name in components})


def _config(kind: str, dtype: torch.dtype) -> Any:
    if kind == "torchao_int8":
        from torchao.quantization import Int8WeightOnlyConfig

        return TorchAoConfig(Int8WeightOnlyConfig())
    if kind == "bnb_8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    options = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": dtype}
    return BitsAndBytesConfig(load_in_4bit=True, **options)
