"""The optimiser of what is trained."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from flow_factory.config import TrainConfig
from flow_factory.utils.errors import UserError


def make_optimizer(train: TrainConfig, params: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW in the width that the config asks for."""
    keys: dict[str, Any] = {
        "lr": train.learning_rate,
        "betas": train.adam_betas,
        "eps": train.adam_epsilon,
        "weight_decay": train.adam_weight_decay,
    }
    if train.optimizer == "adamw":
        return torch.optim.AdamW(params, **keys)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise UserError("train.optimizer: adamw8bit needs bitsandbytes: pip install 'flow-factory[quantization]'") from error
    return AdamW8bit(params, **keys)
