"""The parts of a training, built once by `train.assemble` and shared by the trainer, the collector and the learner."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from accelerate import Accelerator
from torch.optim.lr_scheduler import LambdaLR

from flow_factory.algorithms.base import Algorithm
from flow_factory.config import BatchPlan, RunConfig
from flow_factory.data.given import GivenMedia
from flow_factory.distributed.engines import Engine
from flow_factory.models.base import ModelAdapter
from flow_factory.policy.policy import Policy
from flow_factory.policy.weight_store import WeightStore
from flow_factory.rewards.scoring import RewardSet
from flow_factory.runs.training_state import Progress
from flow_factory.training.meter import Meter
from flow_factory.types import Cond, Row
from flow_factory.utils.signals import Interrupt


@dataclass(frozen=True)
class TrainingContext:
    """The parts of one training on one process. The references stay the same, while the parts change: weights, progress, metrics."""

    config: RunConfig
    plan: BatchPlan
    call: dict[str, Any]
    """The pipeline's arguments in rollouts."""
    accelerator: Accelerator
    adapter: ModelAdapter
    algorithm: Algorithm
    engine: Engine
    """The engine, with the policy and its optimiser."""
    store: WeightStore
    """The copies of the trained weights."""
    schedule: LambdaLR
    """The schedule of the learning rate."""
    rewards: RewardSet
    rows: Sequence[Row]
    conds: Sequence[Cond]
    """The conditions of the rows."""
    given: GivenMedia | None
    """Demonstrations or preferences, instead of rollouts and rewards."""
    progress: Progress
    meter: Meter
    interrupt: Interrupt = field(default_factory=Interrupt)

    @property
    def judged(self) -> bool:
        """Whether rewards score the samples."""
        return self.given is None and self.config.train.judged

    @property
    def policy(self) -> Policy:
        """The trained policy."""
        return self.engine.policy
