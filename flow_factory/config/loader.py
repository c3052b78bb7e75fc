"""YAML file -> RunConfig, or one error with everything that is wrong in it; and back."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from flow_factory.config import rules
from flow_factory.config.algorithms import TRAIN_CONFIGS
from flow_factory.config.base import Section, show
from flow_factory.config.data import DataConfig
from flow_factory.config.eval import EvalConfig
from flow_factory.config.explain import explain, unknown_key
from flow_factory.config.log import MOVABLE, LogConfig
from flow_factory.config.model import ModelConfig
from flow_factory.config.pipelines import pipeline_name, pipeline_path
from flow_factory.config.places import elsewhere
from flow_factory.config.rewards import RewardConfig
from flow_factory.config.run import RunConfig
from flow_factory.config.scheduler import SchedulerConfig
from flow_factory.config.signature import (
    Parameter,
    SignatureError,
    call_arguments,
    class_attribute,
    scheduler_arguments,
    supplied_by_trainer,
)
from flow_factory.config.source import Source, override, read
from flow_factory.config.text import Keys, Problem, dump
from flow_factory.config.train import LORA_RATE, TrainConfig
from flow_factory.models import MODELS
from flow_factory.registry import UnknownName

Accepted = Mapping[str, Parameter] | None
"""Arguments that a section takes beyond its own keys; None takes any."""


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads and checks a run's YAML. What can be known without loading a model is known afterwards.

    Args:
        overrides: `section.key=value`, applied in order; the value is YAML, and here `1e-4` is a number.

    Raises:
        ConfigError: all that is wrong with single keys, or else all that does not fit together.
    """
    source = read(Path(path))
    _gather_log_keys(source)
    for text in overrides:
        key = text.partition("=")[0].strip()
        override(source, f"log.{text}" if key in MOVABLE else text)
    for name in ("data", "model", "scheduler", "train", "eval", "log"):
        if source.tree.get(name) is None:
            source.tree[name] = {}
    _list_rewards(source)
    if source.tree.get("mixed_precision") in ("no", False) and source.mapping("model").get("finetune_type", "full") == "full":
        source.mapping("model").setdefault("master_weight_dtype", "fp32")  # 16 bits beside float32 parts would need autocast
    if source.mapping("model").get("finetune_type") == "lora":  # the weights' own rate teaches it nothing
        source.mapping("train").setdefault("learning_rate", LORA_RATE)
    train = _train_schema(source)
    _gather_arguments(source, train)
    config = _validated(source, train)
    config, adjusted = rules.rounded_up(config)
    config, translated = rules.recomputed(config)
    source.problems += rules.broken(config)
    if source.problems and config.config_file is not None and (said := elsewhere(config.config_file, Path(path))):
        source.problems.append(Problem(("config_file",), said))
    source.fail()
    return config.noting(rules.notices(config) + adjusted + translated)


def dump_config(config: RunConfig) -> str:
    """YAML with every key as it was resolved; loading it gives an equal configuration."""
    tree = config.model_dump(mode="json")
    for name, section in _sections(type(config.train)).items():
        _spread(tree[name], section)
    for name in ("train", "eval"):
        if tree[name]["resolution"] == [tree[name]["height"], tree[name]["width"]]:
            del tree[name]["height"], tree[name]["width"]
    for reward in tree["rewards"] + (tree["eval_rewards"] or []):
        _spread(reward, RewardConfig)
    return dump(tree)


def _sections(train: type[TrainConfig]) -> dict[str, type[Section]]:
    return {"data": DataConfig, "model": ModelConfig, "scheduler": SchedulerConfig, "train": train, "eval": EvalConfig, "log": LogConfig}


def _spread(tree: dict[str, Any], section: type[Section]) -> None:
    if section.rest is not None:
        tree |= tree.pop(section.rest)


def _gather_log_keys(source: Source) -> None:
    """Moves the log keys that stand at the top level into `log:`."""
    for key in MOVABLE:
        if key not in source.tree:
            continue
        if source.tree.get("log") is None:
            source.tree["log"] = {}
        log, value = source.mapping("log"), source.tree.pop(key)
        if key in log and log[key] != value:
            text = f"is {show(value)} here and {show(log[key])} in log:; keep one"
            source.problems.append(Problem((key,), text))
        elif key not in log:
            log[key] = value
            source.move((key,), ("log", key))


def _list_rewards(source: Source) -> None:
    """Brings a single reward, or a mapping from names to rewards, to a list."""
    for section in ("rewards", "eval_rewards"):
        tree = source.tree.get(section)
        if not isinstance(tree, dict):
            continue
        if not tree or "reward_model" in tree or not all(isinstance(entry, dict) for entry in tree.values()):
            source.tree[section] = [tree]
            source.move((section,), (section, 0))
            continue
        source.tree[section] = [{"name": name, **entry} for name, entry in tree.items()]
        for index, name in enumerate(tree):
            source.move((section, name), (section, index))


def _train_schema(source: Source) -> type[TrainConfig]:
    """The schema of the algorithm; with an unknown one, the keys that all share are still checked."""
    from flow_factory.algorithms import ALGORITHMS  # they import this package

    tree = source.mapping("train")
    name = tree.get("trainer_type", "grpo")
    if isinstance(name, str):
        name = tree["trainer_type"] = ALGORITHMS.canonical(name)
        if name in TRAIN_CONFIGS:
            return TRAIN_CONFIGS[name]
        try:
            schema = getattr(ALGORITHMS[name], "Config", None)
            if isinstance(schema, type) and issubclass(schema, TrainConfig):
                return schema
            text = f"{name} has no Config: write a subclass of TrainConfig with the keys that it takes"
        except UnknownName as error:
            text = str(error)
        source.problems.append(Problem(("train", "trainer_type"), text))
    else:
        source.problems.append(Problem(("train", "trainer_type"), f"wants a name, got {show(name)}; e.g. grpo"))
    tree.pop("trainer_type")
    return TrainConfig


def _gather_arguments(source: Source, train: type[TrainConfig]) -> None:
    """Moves arguments that are no keys of their section's schema into the section's `rest`."""
    accepted: Callable[[], Accepted] = partial(_call_arguments, source.mapping("model"))
    everything = (lambda: None) if train is TrainConfig else accepted
    _gather(source, ("train",), train, everything, supplied_by_trainer)
    _gather(source, ("eval",), EvalConfig, accepted, supplied_by_trainer)
    evaluation, training = source.mapping("eval"), source.mapping("train")
    _write_strength(training, accepted)
    evaluation["call"] = training.get("call", {}) | evaluation.get("call", {})
    _gather(source, ("scheduler",), SchedulerConfig, scheduler_arguments)
    for section in ("rewards", "eval_rewards"):
        entries = source.tree.get(section)
        for index in range(len(entries) if isinstance(entries, list) else 0):
            entry = source.mapping(section, index)
            _gather(source, (section, index), RewardConfig, partial(_reward_arguments, entry.get("reward_model")))


def _gather(
    source: Source,
    keys: Keys,
    section: type[Section],
    accepted: Callable[[], Accepted],
    supplied: Callable[[str], str | None] = lambda name: None,
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
    for name, value in rest.items():
        text = _misfit(name, value, section, arguments, supplied)
        if text is not None:
            source.problems.append(Problem((*keys, name), text))
    tree[section.rest] = rest


def _misfit(name: str, value: Any, section: type[Section], arguments: Accepted, supplied: Callable[[str], str | None]) -> str | None:
    """Why an argument may not stand in a section, or None."""
    if arguments is None:
        return None
    if name in arguments and (reason := supplied(name)) is not None:
        return f"cannot be set: {reason}"
    if name in arguments:
        return arguments[name].problem(value)
    algorithms = [key for key, schema in TRAIN_CONFIGS.items() if name in schema.own_keys()]
    if issubclass(section, TrainConfig) and algorithms:
        return f"unknown key here; it belongs to trainer_type: {', '.join(algorithms)}"
    open_to = list(dict.fromkeys([*section.own_keys(), *(argument for argument in arguments if not supplied(argument))]))
    return unknown_key(name, open_to, _homes(TRAIN_CONFIGS["grpo"], open_to))


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


def _validated(source: Source, train: type[TrainConfig]) -> RunConfig:
    try:
        config = RunConfig[train].model_validate(source.tree)  # type: ignore[valid-type]
    except ValidationError as error:
        source.problems += [_problem(e["loc"], e, train) for e in error.errors() if e["type"] != "default_factory_not_called"]
        source.fail()
        raise
    source.fail()
    return config


def _problem(keys: Keys, error: Any, train: type[TrainConfig]) -> Problem:
    if error["type"] != "extra_forbidden":
        return Problem(keys, explain(error))
    section: type[Section] = _sections(train).get(str(keys[0]), RunConfig) if len(keys) > 1 else RunConfig
    own = [*section.own_keys(), *(MOVABLE if section is RunConfig else ())]
    return Problem(keys, unknown_key(str(keys[-1]), own, _homes(train, own)))


def _homes(train: type[TrainConfig], own: Collection[str]) -> dict[str, str]:
    """Key -> section that has it (train first, where several do), for all but a section's own."""
    sections = _sections(train)
    order = ["train", *(name for name in sections if name != "train")]
    return {key: f"{name}:" for name in reversed(order) for key in sections[name].own_keys() if key not in own}
