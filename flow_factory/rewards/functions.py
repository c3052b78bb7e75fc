"""Rewards that are plain functions, as for TRL: `def reward(images, prompts, **columns) -> list[float]`."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from flow_factory.rewards.base import BaseRewardModel, GroupwiseRewardModel, PointwiseRewardModel
from flow_factory.rewards.needs import GIVEN
from flow_factory.utils.errors import UserError

PLURALS = {"prompt": "prompts", "negative_prompt": "negative_prompts", "image": "images", "video": "videos"}
"""Parameter names of a class's inputs -> their other names in functions."""
SINGULARS = {many: one for one, many in PLURALS.items()}


def class_of_function(where: str, function: Callable[..., Any], keys: Mapping[str, Any]) -> type[BaseRewardModel]:
    """The reward that calls a function with lists of n by parameter name, and with the keys of the entry that it names.

    Args:
        where: such as "reward 'it': 'my_rewards.light'".
        keys: the entry's own keys.

    Raises:
        UserError: it is async, it has positional-only parameters, or two parameters name the same input.
    """
    if inspect.iscoroutinefunction(function):
        raise UserError(f"{where} is async; write a plain def, and async_reward: true to call it during the sampling")
    parameters = _parameters(where, function)
    own = tuple(name for name, p in parameters.items() if p.kind is not p.VAR_KEYWORD and SINGULARS.get(name, name) not in GIVEN)
    bound = {name: value for name, value in keys.items() if name in own}
    taken = [p.replace(name=SINGULARS.get(p.name, p.name)) for p in parameters.values() if p.name not in bound]
    if twice := [p.name for k, p in enumerate(taken) if p.name in {other.name for other in taken[:k]}]:
        raise UserError(f"{where} names both {twice[0]!r} and {PLURALS[twice[0]]!r}, which are the same; write one of them")

    def call(self: BaseRewardModel, **given: Any) -> Any:
        return function(**{name if name in parameters else PLURALS.get(name, name): values for name, values in given.items()}, **bound)

    itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    call.__signature__ = inspect.Signature([itself, *taken])  # type: ignore[attr-defined]
    base = GroupwiseRewardModel if getattr(function, "groupwise", False) else PointwiseRewardModel
    names = {"__call__": call, "__module__": function.__module__, "__doc__": function.__doc__, "extra_keys": own}
    return type(getattr(function, "__name__", type(function).__name__), (base,), names)


def _parameters(where: str, function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Its parameters by name, all of which can be given by name; `*args` gets nothing."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError) as error:
        raise UserError(f"{where} has no readable signature; write it as a Python function") from error
    if positional := [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY]:
        raise UserError(f"{where} has the positional-only argument {positional[0]!r}; rewards are called with keyword arguments")
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)
    named = [p if p.kind is p.VAR_KEYWORD else p.replace(kind=p.KEYWORD_ONLY) for p in parameters if p.kind in kinds]
    return {p.name: p for p in named}
