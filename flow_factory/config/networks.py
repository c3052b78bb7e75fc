"""`optimizers:` of the networks that are trained beside the policy."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from flow_factory.config.base import Betas, Section, Shown, show
from flow_factory.config.train import TrainConfig

FASTER = 4
"""Learning rates of networks beside the policy, in those of the policy: they follow it (TDM-R1's and FastVideo's ratio)."""


class NetworkConfig(Section):
    """How one network is trained. The policy, `generator` in the public files, is trained as `train:` says."""

    name: str = Field(description="fake or surrogate; generator or default stand for keys of train:")
    optimizer: Annotated[str | None, Shown("adamw | adamw8bit")] = Field(None, description="null = train.optimizer, which all share")
    learning_rate: float | None = Field(None, gt=0, le=1, description=f"null = {FASTER} x train.learning_rate")
    weight_decay: float | None = Field(None, ge=0, description="null = train.adam_weight_decay")
    betas: Annotated[Betas | None, Shown("[float, float] or null")] = Field(
        None, description="null = train.adam_betas, of the surrogate [0.9, 0.999]"
    )
    eps: float | None = Field(None, gt=0, description="null = train.adam_epsilon")
    max_grad_norm: float | None = Field(None, gt=0, description="null = train.max_grad_norm")
    update_frequency: int = Field(1, ge=1, description="number of updates of the run for one of this network; 1 = in each")


def group_of(role: str, train: TrainConfig, networks: tuple[NetworkConfig, ...]) -> dict[str, Any]:
    """What an optimiser is told of a network's weights."""
    settings = next((network for network in networks if network.name == role), NetworkConfig.model_validate({"name": role}))
    betas = (0.9, 0.999) if role == "surrogate" else train.adam_betas

    def first(value: Any, default: Any) -> Any:
        return default if value is None else value

    return {
        "lr": first(settings.learning_rate, FASTER * train.learning_rate),
        "betas": first(settings.betas, betas),
        "eps": first(settings.eps, train.adam_epsilon),
        "weight_decay": first(settings.weight_decay, train.adam_weight_decay),
        "max_grad_norm": first(settings.max_grad_norm, train.max_grad_norm),
    }


def _entries(value: Any) -> Any:
    if not isinstance(value, (list, tuple)) or not all(isinstance(entry, (dict, NetworkConfig)) for entry in value):
        raise ValueError(f"wants a list of networks, such as [{{name: fake, learning_rate: 3.0e-4}}], got {show(value)}")
    return tuple(value)


Networks = Annotated[tuple[NetworkConfig, ...], BeforeValidator(_entries), Shown("list")]
