"""Keys of `train:` of GARDO: for which samples the KL term counts, when the reference moves, and what diversity is worth."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field

from flow_factory.config.base import Name, Shown, show
from flow_factory.config.train import TrainConfig


def _bounds(value: Any) -> tuple[float, float]:
    numbers = isinstance(value, (list, tuple)) and len(value) == 2 and all(isinstance(v, int | float) for v in value)
    if not numbers or not 0 < value[0] <= value[1] <= 1:
        raise ValueError(f"wants [low, high] with 0 < low <= high <= 1, got {show(value)}; e.g. [0.02, 0.2]")
    return float(value[0]), float(value[1])


Bounds = Annotated[tuple[float, float], BeforeValidator(_bounds), Shown("[low, high]")]


class GateConfig(TrainConfig):
    """What algorithms share whose KL term may count for some samples only."""

    refused: ClassVar[Mapping[str, str]] = {}

    kl_beta: float = Field(0.0, ge=0, le=1e6, description="weight of the KL term to the reference; 0 = no reference")
    kl_gate_share: float | None = Field(
        None,
        gt=0,
        le=1,
        description="GARDO: the KL term counts for this share of the samples that the trained rewards rank above the watched ones "
        "(weight: 0), those that they overrate most; it adapts over the epochs; null = all samples",
    )
    kl_gate_bounds: Bounds = Field((0.02, 0.2), description="kl_gate_share: the share stays in this range as it adapts")
    kl_reset_threshold: float | None = Field(
        None,
        gt=0,
        description="GARDO: an epoch with a micro-batch whose KL is above this makes the policy the new reference; null = none does",
    )
    kl_reset_epochs: int | None = Field(None, ge=1, description="so many epochs after the last time the policy becomes the reference again")
    diversity_reward: Name | None = Field(
        None,
        description="advantage_aggregation: gardo: the watched reward that scales the advantages of good samples, such as diversity",
    )

    @property
    def moves_reference(self) -> bool:
        return self.kl_beta > 0 and (self.kl_reset_threshold, self.kl_reset_epochs) != (None, None)
