"""The optimiser of the trained weights."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from flow_factory.config import TrainConfig
from flow_factory.config.networks import NetworkConfig, group_of
from flow_factory.policy.lora import MAIN
from flow_factory.utils.errors import UserError


def make_optimizer(train: TrainConfig, params: Iterable[Any], networks: tuple[NetworkConfig, ...] = ()) -> torch.optim.Optimizer:
    """The optimiser that the config asks for.

    Args:
        params: the trained weights, or a parameter group for each network: see `Policy.groups`.
        networks: the settings of the networks other than the policy.

    Raises:
        UserError: the optimiser needs a package, or a version of torch, that is not installed.
    """
    keys: dict[str, Any] = {
        "lr": train.learning_rate,
        "betas": train.adam_betas,
        "eps": train.adam_epsilon,
        "weight_decay": train.adam_weight_decay,
    }
    params = [p if isinstance(p, nn.Parameter) else p | settings(p["role"], train, networks) for p in params]
    if train.optimizer == "adamw":
        return torch.optim.AdamW(params, **keys)
    if train.optimizer == "muon":
        return MuonAndAdamW(params, train, keys)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise UserError("train.optimizer: adamw8bit needs bitsandbytes: pip install 'flow-factory[quantization]'") from error
    return AdamW8bit(params, **keys)


def settings(role: str, train: TrainConfig, networks: tuple[NetworkConfig, ...]) -> dict[str, Any]:
    """The settings of a network's parameter group that differ from the policy's."""
    return {"max_grad_norm": train.max_grad_norm} if role == MAIN else group_of(role, train, networks)


class MuonAndAdamW(torch.optim.Optimizer):
    """torch's Muon for matrices and AdamW for all other weights, as one optimiser with one state (Keller Jordan 2024)."""

    def __init__(self, params: Iterable[nn.Parameter], train: TrainConfig, adamw: dict[str, Any]):
        trained = list(params)
        rates: dict[str, Any] = {"lr": train.learning_rate, "weight_decay": train.adam_weight_decay}
        shape: dict[str, Any] = {"momentum": train.muon_momentum, "nesterov": train.muon_nesterov, "ns_steps": train.muon_ns_steps}
        matrices, others = [p for p in trained if p.ndim == 2], [p for p in trained if p.ndim != 2]
        self.parts: list[torch.optim.Optimizer] = []
        if matrices:
            self.parts.append(torch.optim.Muon(matrices, **rates, **shape, adjust_lr_fn=train.muon_adjust_lr_fn))
        if others:
            self.parts.append(torch.optim.AdamW(others, **adamw))
        super().__init__([group for part in self.parts for group in part.param_groups], rates)
        self._share()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    def _share(self) -> None:
        """Lets both parts use the groups and the state of this optimiser, which is all that schedules and `load_state_dict` see."""
        for part, group in zip(self.parts, self.param_groups, strict=True):
            part.param_groups, part.state = [group], self.state

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of both."""
        for part in self.parts:
            part.step(closure)
