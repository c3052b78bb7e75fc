"""Policies whose weights are saved and loaded, and folders of them."""

from pathlib import Path

import torch
from diffusers import FluxPipeline
from safetensors.torch import save_file

from flow_factory.checkpoints.model_files import save_model
from flow_factory.policy.policy import Policy

LORA = {"finetune_type": "lora", "target_modules": ("default",), "lora_rank": 4, "lora_alpha": 12}
FULL = {"finetune_type": "full", "master_weight_dtype": "fp32"}


def saved(folder: Path, policy: Policy) -> Path:
    save_model(folder, policy, FluxPipeline)
    return folder


def state_of(policy: Policy) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in policy.components.state_dict().items()}


def only(folder: Path, name: str, tensors: dict[str, torch.Tensor]) -> Path:
    """A folder with this file alone."""
    (folder / "other").mkdir()
    save_file(tensors, folder / "other" / name)
    return folder / "other"
