"""`rewards:` and `eval_rewards:` what scores a sample."""

import difflib
import re
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, field_validator, model_validator

from flow_factory.config.base import DERIVED, Device, Dtype, Name, Names, Section, Shown, derived, show
from flow_factory.config.modules import source_of
from flow_factory.config.signature import require_reward


def _entries(value: Any) -> Any:
    if not isinstance(value, (list, tuple)) or not value and not isinstance(value, tuple):  # `()` is of an algorithm without rewards
        raise ValueError(f"wants a reward (a mapping with reward_model) or a list of them, got {show(value)}")
    return tuple(value)


def _limits(value: Any) -> Any:
    if value is None:
        return None
    right = isinstance(value, (list, tuple)) and len(value) == 2 and all(isinstance(v, int | float) for v in value)
    if not right or not value[0] < value[1]:
        raise ValueError(f"wants [low, high] with low < high, got {show(value)}; e.g. [0.0, 1.0]")
    return tuple(map(float, value))


class SigmoidConfig(Section):
    """1 / (1 + exp(-(score - centre) / width)): scores far from the centre come near 0 or 1."""

    centre: float = Field(0.0, description="score that becomes 1/2")
    width: float = Field(1.0, gt=0, description="distance from the centre at which the result is 0.73")


class TransformConfig(Section):
    """Changes a reward's scores before they are weighted, in this order: clip, sigmoid or rank, scale."""

    clip: Annotated[tuple[float, float] | None, BeforeValidator(_limits), Shown("[low, high], or null")] = Field(
        None, description="limit scores to this range"
    )
    sigmoid: SigmoidConfig | None = Field(None, description="map scores into 0 to 1")
    rank: bool = Field(False, description="replace each score by its rank in its group, from 0 to 1; equal scores share a rank")
    scale: float = Field(1.0, ge=-1e6, le=1e6, description="factor; gdpo with several rewards normalises it away")

    @model_validator(mode="after")
    def _sensible(self) -> "TransformConfig":
        if self.rank and self.sigmoid is not None:
            raise ValueError("rank and sigmoid: ranks are the same with and without sigmoid; leave one of them out")
        if self.scale == 0:
            raise ValueError("scale: 0 makes all scores alike; to watch a reward without learning from it write weight: 0")
        return self


INNER: dict[str, type[Section]] = {"transform": TransformConfig, "sigmoid": SigmoidConfig}
"""The sections in an entry, by their key."""


def _weights(value: Any) -> Any:
    if isinstance(value, dict) and value:
        return {name: _factor(number, f"{name}: ") for name, number in value.items()}
    return _factor(value)


def _factor(value: Any, of: str = "") -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{of}wants a number{'' if of else ', or one for each of data.datasets'}, got {show(value)}")
    if not -1e6 <= value <= 1e6:
        raise ValueError(f"{of}must be a number from -1.0e+6 to 1.0e+6, got {show(value)}")
    return float(value)


Weight = Annotated[float | dict[str, float], BeforeValidator(_weights), Shown("number, or mapping, data set: number")]


class RewardConfig(Section):
    """One reward. The entry also takes the keys that the reward's class declares (any key, if it declares none)."""

    rest: ClassVar[str | None] = "extra_kwargs"

    reward_model: str = Field(description="a known name, or package.module.Class or package.module.function of your own")
    name: Annotated[
        Name,
        derived(lambda above: above.get("reward_model", "unknown").replace(":", ".").rpartition(".")[2].lower()),
        Shown(default="from reward_model"),
    ] = Field(DERIVED, description="name in logs and metrics")
    weight: Weight = Field(1.0, description="factor of this reward in the advantage; a mapping has one for each of data.datasets")
    applicable_datasets: Annotated[Names | None, Shown("name or list of names, or null")] = Field(
        None, description="names of the data.datasets whose samples it scores; null = all"
    )
    dtype: Dtype = Field("fp32", description="dtype of the reward's weights; published scores are computed in fp32")
    device: Device = Field("auto", description="device of the reward; auto = the training device")
    batch_size: int = Field(16, ge=1, description="samples per call")
    max_seconds: float | None = Field(
        None,
        gt=0,
        description="time limit of one call (a batch, or a group of a groupwise reward), after which the run ends; null = no limit",
    )
    max_missing: float = Field(0.5, ge=0, le=1, description="largest share of an epoch's scores that may be missing; above it the run ends")
    transform: TransformConfig | None = Field(
        None, description="transform of the scores before they are weighted: clip, sigmoid, rank, scale"
    )
    async_reward: bool = Field(False, description="score in separate threads while the next samples are drawn; the scores are the same")
    num_workers: int = Field(1, ge=1, description="with async_reward: calls at the same time; a local reward must be thread-safe")
    extra_kwargs: dict[str, Any] = Field(default_factory=dict, description="keys for the reward itself")

    @field_validator("reward_model")
    @classmethod
    def _known(cls, name: str) -> str:
        from flow_factory.rewards import GIVEN, REWARDS  # rewards may import this package

        if not name.startswith(GIVEN):  # what has no name in a module is asked for where it is called: pictures need it not
            require_reward(REWARDS.path(name))
        return name


def misspelt(path: str, key: str) -> str | None:
    """Why a key is a typo, for a reward that takes any key: the module never names it, but names a similar one, or a common key is similar.

    Args:
        path: `module:Class`.
    """
    text = source_of(path.partition(":")[0])
    if not text or re.search(rf"\b{re.escape(key)}\b", text):
        return None
    read = [a or b for a, b in re.findall(r"(?:\[|get\(|config,)\s*[\"'](\w+)[\"']|config\.(\w+)", text)]
    close = difflib.get_close_matches(key, dict.fromkeys([*RewardConfig.own_keys(), *read]), n=1, cutoff=0.8)
    if not close:
        return None
    return f"unknown key; the reward's module never names it. Did you mean {close[0]!r}? If not, declare extra_keys in the class"


Rewards = Annotated[tuple[RewardConfig, ...], BeforeValidator(_entries)]
