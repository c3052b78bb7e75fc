"""The whole YAML: top-level keys and sections."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Generic, Literal

from pydantic import BeforeValidator, Field, PrivateAttr
from typing_extensions import Self, TypeVar

from flow_factory.config.base import Folder, Section
from flow_factory.config.data import DataConfig
from flow_factory.config.engine import EngineSettings, engine_of
from flow_factory.config.eval import EvalConfig
from flow_factory.config.log import LogConfig
from flow_factory.config.model import ModelConfig
from flow_factory.config.monitor import Watches
from flow_factory.config.networks import Networks
from flow_factory.config.nodes import Keys, Written
from flow_factory.config.profile import ProfileConfig
from flow_factory.config.rewards import Rewards
from flow_factory.config.scheduler import SchedulerConfig
from flow_factory.config.train import TrainConfig

Train = TypeVar("Train", bound=TrainConfig, default=TrainConfig)
Precision = Annotated[
    Literal["no", "fp16", "bf16"], BeforeValidator(lambda value: "no" if value is False else value)
]  # YAML reads no as false


class RunConfig(Section, Generic[Train]):
    """A run. `RunConfig[GRPOConfig]` is one whose `train` is known to be GRPO's."""

    launcher: Literal["accelerate"] = Field("accelerate", description="launcher of the processes")
    config_file: Folder | None = Field(None, description="accelerate or DeepSpeed YAML; null = plain data parallel (DDP)")
    num_processes: int = Field(1, ge=1, le=65536, description="number of processes over all machines")
    num_machines: int = Field(1, ge=1, le=65536, description="number of machines; each starts the command with its own --machine_rank")
    main_process_port: int = Field(29500, ge=0, le=65535, description="TCP port of the rendezvous")
    distributed_timeout: int = Field(
        600,
        ge=1,
        le=10_000_000,
        description="seconds that one collective, such as the all-reduce of gradients, may take; other waits have no limit",
    )
    mixed_precision: Precision = Field("bf16", description="dtype of the frozen weights and of the forward pass")
    data: DataConfig
    model: ModelConfig
    scheduler: SchedulerConfig
    train: Train
    eval: EvalConfig
    log: LogConfig
    rewards: Rewards = Field(description="rewards to train on")
    optimizers: Networks = Field((), description="how the networks other than the policy are trained, if an algorithm has any")
    eval_rewards: Rewards | None = Field(None, description="rewards to evaluate with; null = rewards")
    monitor: Watches = Field((), description="metrics that are watched, and what happens when one crosses its threshold; () = none")
    profile: ProfileConfig | None = Field(None, description="what torch's profiler records: {epoch: 2, steps: 3}; null = nothing")

    _notices: tuple[str, ...] = PrivateAttr(())
    _written: Mapping[Keys, Written] = PrivateAttr(default_factory=dict)

    @property
    def notices(self) -> tuple[str, ...]:
        """Notices for the user, one line each: keys without effect, sizes that were rounded. Not part of equality or of a dump."""
        return self._notices

    @property
    def written(self) -> Mapping[Keys, Written]:
        """Values that came from the environment, as the YAML has them."""
        return self._written

    @property
    def engine(self) -> EngineSettings:
        """The engine. On one process DeepSpeed would shard nothing, and is not used.

        Raises:
            ConfigError: as `engine_of`; a config that was loaded has none.
        """
        engine = engine_of(self.config_file, self.model.offload_blocks)
        if engine.kind == "fsdp" and self.model.reshard_after_forward is False:
            return replace(engine, keep=True)
        return EngineSettings() if engine.kind == "zero" and self.num_processes == 1 else engine

    @property
    def sharers(self) -> int:
        """Number of processes that a sharded weight is sharded over."""
        return self.engine.sharers(self.num_processes)

    @property
    def teams(self) -> int:
        """Number of processes, or of teams of `model.context_parallel` processes, that take different samples."""
        return -(-self.num_processes // self.model.context_parallel)  # never 0: the rule that they divide is one of many

    def frequency_of(self, network: str) -> int:
        """The number of updates of the run for one of this network."""
        return next((settings.update_frequency for settings in self.optimizers if settings.name == network), 1)

    @property
    def evaluated_by(self) -> Rewards:
        """The rewards of an evaluation."""
        return self.rewards if self.eval_rewards is None else self.eval_rewards

    @property
    def eval_seed(self) -> int:
        """The seed of every draw of an evaluation."""
        return self.train.seed if self.eval.seed is None else self.eval.seed

    def noting(self, notices: tuple[str, ...], written: Mapping[Keys, Written]) -> Self:
        """The same configuration with other notices, and what of it came from the environment."""
        copy = self.model_copy()
        copy._notices, copy._written = notices, written
        return copy

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, RunConfig) and self.__dict__ == other.__dict__
