"""Arguments of pipelines, schedulers and rewards that stand in the YAML among a section's own keys."""

from collections.abc import Callable, Collection, Mapping
from functools import cache, partial
from typing import Any

from flow_factory.config.algorithms import TRAIN_CONFIGS
from flow_factory.config.base import Section, show
from flow_factory.config.data import DataConfig, DatasetEvalConfig
from flow_factory.config.eval import EvalConfig
from flow_factory.config.explain import unknown_key
from flow_factory.config.log import LogConfig
from flow_factory.config.model import ModelConfig
from flow_factory.config.modules import SignatureError
from flow_factory.config.monitor import WatchConfig
from flow_factory.config.networks import NetworkConfig
from flow_factory.config.nodes import Keys, Problem
from flow_factory.config.pipelines import pipeline_name, pipeline_path
from flow_factory.config.profile import ProfileConfig
from flow_factory.config.rewards import RewardConfig, misspelt
from flow_factory.config.scheduler import SchedulerConfig
from flow_factory.config.signature import Parameter, call_arguments, class_attribute, scheduler_arguments, supplied_by_trainer
from flow_factory.config.source import Source
from flow_factory.config.train import TrainConfig
from flow_factory.models import MODELS
from flow_factory.utils.registry import UnknownName

POSITIVE = ("height", "width", "max_sequence_length", "num_frames", "frame_rate", "fps", "condition_image_size")
"""Numbers of a pipeline's call of which 0 means nothing, whatever their defaults."""
LARGEST_SIZE, LARGEST_NUMBER = 1_000_000, 1000.0
Accepted = Mapping[str, Parameter] | None
"""Arguments that a section takes beyond its own keys; None takes any."""


def sections(train: type[TrainConfig]) -> dict[str, type[Section]]:
    """Name -> schema."""
    before: dict[str, type[Section]] = {"data": DataConfig, "model": ModelConfig, "scheduler": SchedulerConfig, "train": train}
    after: dict[str, type[Section]] = {"profile": ProfileConfig, "optimizers": NetworkConfig, "monitor": WatchConfig}
    return before | {"eval": EvalConfig, "log": LogConfig} | after


def homes(train: type[TrainConfig], own: Collection[str]) -> dict[str, str]:
    """Key -> section that has it (train first, where several do), for all but a section's own."""
    every = sections(train)
    order = ["train", *(name for name in every if name != "train")]
    return {key: f"{name}:" for name in reversed(order) for key in every[name].own_keys() if key not in own}


def gather_arguments(source: Source, train: type[TrainConfig]) -> None:
    """Moves arguments that are no keys of their section's schema into the section's `rest`."""
    accepted: Callable[[], Accepted] = partial(_call_arguments, source.mapping("model"))
    everything = (lambda: None) if train is TrainConfig else accepted
    _gather(source, ("train",), train, everything, supplied_by_trainer)
    _gather(source, ("eval",), EvalConfig, accepted, supplied_by_trainer)
    evaluation, training = source.mapping("eval"), source.mapping("train")
    _write_strength(training, accepted)
    evaluation["call"] = training.get("call", {}) | evaluation.get("call", {})
    _gather_overrides(source, accepted)
    _gather(source, ("scheduler",), SchedulerConfig, scheduler_arguments)
    gather_rewards(source)


def _gather_overrides(source: Source, accepted: Callable[[], Accepted]) -> None:
    """Brings the keys of `eval:` in the data sets' own into `overrides`."""
    entries = source.mapping("data").get("datasets")
    for k, entry in enumerate(entries if isinstance(entries, list) else ()):
        section = entry.get("eval") if isinstance(entry, dict) else None
        if not isinstance(section, dict):
            continue
        own = {key: section.pop(key) for key in DatasetEvalConfig.own_keys() if key in section}
        _gather(source, ("data", "datasets", k, "eval"), EvalConfig, accepted, supplied_by_trainer)
        call = section.pop("call", {})
        overrides = section | call
        section.clear()
        section |= own | ({"overrides": overrides} if overrides else {})


def gather_rewards(source: Source) -> None:
    """Moves the keys that rewards declare, or take, into their `rest`."""
    for section in ("rewards", "eval_rewards"):
        entries = source.tree.get(section)
        for index in range(len(entries) if isinstance(entries, list) else 0):
            entry = source.mapping(section, index)
            _gather(source, (section, index), RewardConfig, partial(_reward_arguments, entry.get("reward_model")))
            _find_slips(source, (section, index), entry)


def _find_slips(source: Source, keys: Keys, entry: dict[str, Any]) -> None:
    """Keys of a reward that takes any which are written almost like one that is known."""
    from flow_factory.rewards import REWARDS  # rewards may import this package

    try:
        if entry.get("extra_kwargs") and _reward_arguments(entry.get("reward_model")) is None:
            path = REWARDS.path(str(entry.get("reward_model")))
            slips = [(key, misspelt(path, str(key))) for key in entry["extra_kwargs"]]
            source.problems += [Problem((*keys, key), text) for key, text in slips if text is not None]
    except (SignatureError, UnknownName):
        return  # reported where the reward is looked for


def _gather(
    source: Source,
    keys: Keys,
    section: type[Section],
    accepted: Callable[[], Accepted],
    supplied: Callable[[Parameter], str | None] = lambda argument: None,
) -> None:
    tree = source.mapping(*keys)
    names = [name for name in tree if name not in section.own_keys()]
    if not names or section.rest is None:
        return
    try:
        arguments = accepted()
    except SignatureError as error:
        source.problems.append(Problem((*keys, names[0]), f"unknown key; {error}"))
        arguments = None
    rest = {name: tree.pop(name) for name in names}
    refused = [name for name, value in rest.items() if name in section.refused and value is not None]
    for name in [name for name in rest if arguments is not None and name not in arguments and name not in refused]:
        if (idle := _idle(name, section, source.mapping("train"))) is not None:
            del rest[name]
            source.notices.append(f"{'.'.join(map(str, keys))}.{name} has no effect: {idle}")
    for name, value in rest.items():
        text = _misfit(name, value, section, arguments, supplied)
        if text is not None:
            source.problems.append(Problem((*keys, name), text))
    tree[section.rest] = rest
    for word in [word for word in source.words if word[: len(keys)] == keys and word[len(keys)] in rest]:
        parameter = None if arguments is None else arguments.get(str(word[len(keys)]))
        if parameter is None or parameter.kinds is None:  # nobody else asks what it should be
            written = source.words[word]
            read = "true" if written.lower() in ("yes", "on", "y") else "false"
            source.problems.append(Problem(word, f'YAML reads {written} as {read}; write {read}, or "{written}" where text is meant'))


def _idle(name: str, section: type[Section], train: Mapping[str, Any]) -> str | None:
    """Why a key that others have does nothing here; None where it is no such key. Public configs carry them along."""
    algorithms = [key for key, schema in TRAIN_CONFIGS.items() if name in schema.own_keys()]
    if issubclass(section, TrainConfig) and algorithms and section.rest == "call":
        return f"it belongs to trainer_type: {', '.join(algorithms)}, and this is {train.get('trainer_type')}"
    return "this model has no such size" if section.rest == "call" and name in _sizes() else None


@cache
def _sizes() -> frozenset[str]:
    """What some of the families take beside their pipeline's arguments."""
    return frozenset().union(*(class_attribute(path, "extra_call_arguments") or () for path in MODELS.table.values()))


def _misfit(name: str, value: Any, section: type[Section], arguments: Accepted, supplied: Callable[[Parameter], str | None]) -> str | None:
    """Why an argument may not stand in a section, or None."""
    if name in section.refused:
        return section.refused[name]
    if arguments is None:
        return None
    if name in arguments and (reason := supplied(arguments[name])) is not None:
        return f"cannot be set: {reason}"
    if name in arguments:
        return arguments[name].problem(value) or (_size(name, value, arguments[name].default) if section.rest == "call" else None)
    open_to = list(dict.fromkeys([*section.own_keys(), *(n for n, argument in arguments.items() if not supplied(argument))]))
    return unknown_key(name, open_to, homes(TRAIN_CONFIGS["grpo"], open_to))


def _size(name: str, value: Any, default: Any) -> str | None:
    """What is wrong with a number of a pipeline's call: they are sizes, counts and strengths, of which none is below 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if name == "strength" and not 0 < value <= 1:
        return f"wants more than 0 and at most 1, got {show(value)}"
    least = 1 if isinstance(value, int) and isinstance(default, int) and default >= 1 else 0
    if value < least or (value == 0 and name in POSITIVE):
        return f"must be greater than {'or equal to ' * (value < 0 and name not in POSITIVE and least == 0)}0, got {show(value)}"
    most = LARGEST_SIZE if isinstance(value, int) else LARGEST_NUMBER
    return f"must be at most {most:g}, got {show(value)}" if value > most else None


def _write_strength(training: dict[str, Any], accepted: Callable[[], Accepted]) -> None:
    """Video-to-video starts inside the schedule: the default of `strength` is written out, since the steps to train depend on it."""
    try:
        arguments = accepted() or {}
    except SignatureError:
        return  # reported where a key could not be checked, or when the pipeline is looked for
    if "strength" in arguments:
        training["call"] = {"strength": arguments["strength"].default} | (training.get("call") or {})


def _call_arguments(model: Mapping[str, Any]) -> Accepted:
    model_type = str(model.get("model_type"))
    try:
        path = MODELS.path(model_type)
    except ValueError:
        return None  # the unknown model is reported where it stands
    if MODELS.canonical(model_type) != "diffusers":
        return call_arguments(path)
    name = model.get("pipeline_class") or pipeline_name(str(model.get("model_name_or_path")))
    if not isinstance(name, str):
        raise SignatureError("the checkpoint is not on disk, so its pipeline must be named: model.pipeline_class")
    return call_arguments(path, pipeline_path(name))


def _reward_arguments(reward_model: Any) -> Accepted:
    from flow_factory.rewards import REWARDS  # rewards may import this package

    try:
        path = REWARDS.path(str(reward_model))
    except ValueError:
        return None  # the unknown reward is reported where it stands
    names = class_attribute(path, "extra_keys")
    return None if names is None else {name: Parameter(name, "any", None) for name in names}
