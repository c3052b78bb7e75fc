"""The loading of rewards: imports their classes, checks their requirements, and constructs each model once."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from flow_factory.config import RewardConfig
from flow_factory.hparams import RewardArguments
from flow_factory.rewards import REWARDS
from flow_factory.rewards.base import BaseRewardModel, GroupwiseRewardModel, PointwiseRewardModel
from flow_factory.rewards.functions import class_of_function
from flow_factory.rewards.isolation import kept
from flow_factory.rewards.needs import Needs, needs_of
from flow_factory.utils.devices import require_device
from flow_factory.utils.errors import UserError
from flow_factory.utils.registry import nearest
from flow_factory.utils.user_code import user_errors, watch_threads


class Entry(Protocol):
    """An entry of the YAML: `RewardConfig` or `RewardArguments`."""

    @property
    def name(self) -> str: ...
    @property
    def reward_model(self) -> str: ...
    @property
    def extra_kwargs(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class LoadedReward:
    """A loaded reward under one entry of the YAML."""

    config: RewardArguments
    model: BaseRewardModel
    needs: Needs

    @property
    def name(self) -> str:
        return self.config.name

    def scores(self, dataset: str) -> bool:
        """Whether it scores the samples of a data set."""
        return self.config.applicable_datasets is None or dataset in self.config.applicable_datasets

    def weight(self, dataset: str) -> float:
        """Its weight in the advantage of a data set's samples."""
        weight = self.config.weight
        return weight.get(dataset, 0.0) if isinstance(weight, dict) else weight

    @property
    def groupwise(self) -> bool:
        return isinstance(self.model, GroupwiseRewardModel)


def reward_class(entry: Entry) -> type[BaseRewardModel]:
    """The class of an entry; for a function, a class that calls it.

    Raises:
        UnknownName: there is no reward of this name.
        UserError: its module cannot be imported, it is not a reward, or cannot be constructed as one.
    """
    name = entry.reward_model
    with kept():
        cls = REWARDS[name]
    if callable(cls) and not isinstance(cls, type):
        return class_of_function(f"reward {entry.name!r}: {name!r}", cls, entry.extra_kwargs)
    if not (isinstance(cls, type) and issubclass(cls, PointwiseRewardModel | GroupwiseRewardModel)):
        raise UserError(f"reward {entry.name!r}: {name!r} is neither a PointwiseRewardModel nor a GroupwiseRewardModel, nor a function")
    if inspect.isabstract(cls):
        raise UserError(f"reward {entry.name!r}: {name!r} has no {' and no '.join(sorted(cls.__abstractmethods__))}")
    try:
        inspect.signature(cls).bind(None, None)
    except TypeError as error:
        raise UserError(f"reward {entry.name!r}: {name!r} is constructed with (config, accelerator), and {error}") from error
    return cls


def compares(entry: Entry) -> bool:
    """Whether the entry's reward is groupwise."""
    return issubclass(reward_class(entry), GroupwiseRewardModel)


def left_out(entries: Sequence[Entry]) -> list[str]:
    """A line about the groupwise rewards, which an evaluation with groups of one leaves out."""
    names = [entry.name for entry in entries if compares(entry)]
    return [f"eval.group_size: 1 leaves {', '.join(names)} out of the evaluation, which compare groups; write e.g. 4"] if names else []


def arguments(entries: Sequence[RewardConfig]) -> list[RewardArguments]:
    """The entries as `RewardArguments`, the public interface; `device: auto` becomes this process's device."""
    return [RewardArguments(**{**e.model_dump(), "device": "cuda" if e.device == "auto" else e.device}) for e in entries]


def require_rewards(entries: Sequence[RewardArguments], kind: Literal["image", "video"], sounds: bool) -> list[Needs]:
    """Checks that the entries' classes exist and score the model's media, without loading anything.

    Args:
        kind, sounds: the media that the model generates (`ModelAdapter.draws`, `ModelAdapter.sounds`).

    Returns:
        The requirements of each reward for every row, see `Needs.require_columns`.

    Raises:
        UserError: a class does not exist, or does not score such media.
    """
    found = [needs_of(config.name, reward_class(config), config) for config in entries]
    for needs in found:
        needs.require_media(kind, sounds)
    return found


def require_gradients(entries: Sequence[RewardArguments]) -> None:
    """Raises:
    UserError: a reward has no gradient.
    """
    for entry in entries:
        why = reward_class(entry).no_gradient
        used = any(entry.weight.values()) if isinstance(entry.weight, dict) else entry.weight != 0
        if used and why is not None:
            text = f"reward {entry.name!r}: draft learns from the gradient of scores, and these have none: {why}"
            raise UserError(f"{text}; take PickScore, CLIP, HPSv2, aesthetic or ImageReward, or write weight: 0 to watch it alone")


def load_each(
    train: Sequence[RewardArguments], evaluation: Sequence[RewardArguments], accelerator: Accelerator
) -> list[list[LoadedReward]]:
    """The rewards of training and of evaluation. Entries that differ only in name, weight and batching share one model.

    Raises:
        UserError: see `reward_class`; or an entry has a key that its class does not take.
        RewardError: a constructor raised.
    """
    models: dict[tuple[Any, ...], BaseRewardModel] = {}

    def loaded(config: RewardArguments) -> LoadedReward:
        identity = (REWARDS.path(config.reward_model), config.dtype, config.device, repr(sorted(config.extra_kwargs.items())))
        if identity not in models:
            models[identity] = construct(config, accelerator)
        return LoadedReward(config, models[identity], needs_of(config.name, models[identity], config))

    rewards = [[loaded(config) for config in entries] for entries in (train, evaluation)]
    watch_threads({type(j.model).__module__: f"reward {j.name!r}" for group in rewards for j in group})
    return rewards


def try_constructors(entries: Sequence[RewardArguments]) -> None:
    """Constructs the rewards without `loads_weights`, as a test.

    Raises:
        UserError: see `load_each`.
    """
    free = [entry for entry in entries if not reward_class(entry).loads_weights]
    if not free:
        return
    known = bool(AcceleratorState._shared_state)
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    try:
        for entry in free:
            construct(entry, accelerator)
    finally:
        if not known:  # a run may want another precision
            AcceleratorState._reset_state(reset_partial_state=True)


def require_files(entries: Sequence[RewardArguments], now: bool) -> None:
    """Checks the files that the constructors of rewards with `loads_weights` will read.

    Raises:
        UserError: see `BaseRewardModel.require_files`.
    """
    for entry in entries:
        cls = reward_class(entry)
        if cls.loads_weights:
            with kept(), user_errors(f"reward {entry.name!r} failed", cls.__module__):
                cls.require_files(entry, now)


def require_devices(entries: Sequence[RewardArguments]) -> None:
    """Raises:
    UserError: this machine does not have the device that an entry names.
    """
    for entry in entries:
        if str(entry.device) != "cuda":  # the device of each process, as `auto`
            require_device(f"reward {entry.name!r}: device", str(entry.device))


def construct(config: RewardArguments, accelerator: Accelerator) -> BaseRewardModel:
    """Constructs one reward, see `load_each`."""
    cls = reward_class(config)
    if cls.extra_keys is not None:
        for key in config.extra_kwargs.keys() - set(cls.extra_keys):
            known = f"it takes {', '.join(cls.extra_keys)}" if cls.extra_keys else "it takes no keys of its own"
            raise UserError(
                f"reward {config.name!r} has no key {key!r}.{nearest(key, list(cls.extra_keys))} Beside the common ones {known}"
            )
    with kept(), user_errors(f"reward {config.name!r} cannot be constructed", cls.__module__):
        return cls(config, accelerator)
