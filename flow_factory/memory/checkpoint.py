"""A checkpoint as the estimate sees it: its family, its sizes and its shapes, without its weights."""

from dataclasses import dataclass, field
from typing import Any

from flow_factory.config import RunConfig
from flow_factory.memory.estimate import estimate
from flow_factory.memory.parts import Part
from flow_factory.memory.rewards import RewardMemory, reward_memory
from flow_factory.memory.sizes import Files, Weights, shape_of, stored_files, stored_parameters, weights_of
from flow_factory.models import MODELS
from flow_factory.models.base import ModelAdapter
from flow_factory.utils.pretrained import on_disk


@dataclass(frozen=True)
class Model:
    """What an estimate needs to know of a checkpoint."""

    family: type[ModelAdapter]
    parameters: dict[str, float]
    module: Any
    files: Files = field(default_factory=dict)
    """The files of a checkpoint on this machine; empty for one that is not here."""
    rewards: RewardMemory = field(default_factory=RewardMemory)

    def parts(self, config: RunConfig) -> list[Part]:
        return [*estimate(config, self.family, self.parameters, self.module, self.files), *self.rewards.parts]

    def weights(self, config: RunConfig) -> Weights:
        return weights_of(config, self.family, self.parameters, self.module)


def model_of(config: RunConfig, rewards: bool = True) -> Model | None:
    """From the files, or from the published sizes of the family; None if both are unknown.

    Args:
        rewards: whether the weights of the rewards count.
    """
    name = config.model.model_name_or_path
    checkpoint = on_disk(name)
    family: type[ModelAdapter] = MODELS[config.model.model_type].of(str(checkpoint or name), config.model.pipeline_class)
    if checkpoint is None and not family.published:
        return None
    parameters = stored_parameters(checkpoint) if checkpoint else dict(family.published_as(name)[0])
    files = stored_files(checkpoint) if checkpoint else {}
    shape = shape_of(family, config.model.target_components[0], checkpoint, name)
    return Model(family, parameters, shape, files, reward_memory(config) if rewards else RewardMemory())
