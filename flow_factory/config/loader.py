"""YAML file -> RunConfig, or one error with everything that is wrong in it."""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from flow_factory.config import rules
from flow_factory.config.algorithms import TRAIN_CONFIGS
from flow_factory.config.arguments import gather_arguments, homes, sections
from flow_factory.config.base import ConfigError, Section, show
from flow_factory.config.data import ALONE, PARTS, DatasetConfig
from flow_factory.config.datasets import overrides_fit
from flow_factory.config.distillation import TeacherConfig
from flow_factory.config.dump import dump_config
from flow_factory.config.explain import explain, unknown_key
from flow_factory.config.few_steps import FewStepConfig
from flow_factory.config.log import MOVABLE
from flow_factory.config.nodes import Keys, Problem
from flow_factory.config.notices import notices
from flow_factory.config.places import elsewhere
from flow_factory.config.public_keys import bring_public_keys
from flow_factory.config.rewards import INNER
from flow_factory.config.run import RunConfig
from flow_factory.config.source import Source, assignment, from_text, override, read, values
from flow_factory.config.train import TrainConfig
from flow_factory.config.translate import translated
from flow_factory.utils.errors import UserError

Overrides = Sequence[str] | Mapping[str, Any]
"""`section.key=value`, or dotted key -> value."""


def load_config(config: str | os.PathLike[str] | Mapping[str, Any] | RunConfig, overrides: Overrides = ()) -> RunConfig:
    """Reads and checks a run's YAML. What can be known without loading a model is known afterwards.

    Args:
        config: the file, what would be in it as a dict, or a loaded config.
        overrides: `section.key=value`, applied in order; the value is YAML, and here `1e-4` is a number. Or dotted key -> value.

    Raises:
        ConfigError: all that is wrong with single keys, or else all that does not fit together.
    """
    source = _source(config)
    if "distributed_type" in source.tree and "model" not in source.tree:
        raise ConfigError(f"{source.name}:1: is a config file of accelerate; name it as config_file in the YAML of a run")
    _normalise(source, override_texts(overrides))
    train = _train_schema(source)
    if source.tree.get("mixed_precision") in ("no", False) and source.mapping("model").get("finetune_type", "full") == "full":
        source.mapping("model").setdefault("master_weight_dtype", "fp32")  # as the rest of the run has
    if source.mapping("model").get("finetune_type") == "lora":  # the weights' own rate teaches it nothing
        source.mapping("train").setdefault("learning_rate", train.lora_rate)
    few_steps(source, train)
    gather_arguments(source, train)
    found, notes = translated(_validated(source, train))
    source.problems += rules.broken(found)
    if source.problems and found.config_file is not None and (there := elsewhere(found.config_file, Path(source.name))):
        source.problems.append(Problem(("config_file",), there))
    source.fail()
    return found.noting((*source.notices, *notices(found), *notes), source.written)


def _source(config: str | os.PathLike[str] | Mapping[str, Any] | RunConfig) -> Source:
    if isinstance(config, RunConfig):
        return from_text(dump_config(config, secrets=True), "config")
    if isinstance(config, Mapping):
        return values(config)
    if isinstance(config, str | os.PathLike) and "\n" not in str(config):
        return read(Path(config))
    kind = "text of several lines" if isinstance(config, str) else f"a value of the type {type(config).__name__}"
    raise ConfigError(f"config: {kind}; give the path of a YAML file, a dict, or what load_config returns")


def override_texts(overrides: Overrides) -> list[str]:
    """`section.key=value` of each override.

    Raises:
        ConfigError: it is neither a mapping nor a list of texts.
    """
    if isinstance(overrides, Mapping):
        return [assignment(key, value) for key, value in overrides.items()]
    if isinstance(overrides, str) or not all(isinstance(text, str) for text in overrides):
        raise ConfigError('overrides: write a dict such as {"train.max_epochs": 2}, or a list such as ["train.max_epochs=2"]')
    return list(overrides)


def _normalise(source: Source, overrides: Sequence[str]) -> None:
    """Applies the overrides, and brings every other spelling of a key to the one of the schemas. Missing sections become empty ones."""
    _gather_log_keys(source)
    for text in overrides:
        key = text.partition("=")[0].strip()
        override(source, f"log.{text}" if key in MOVABLE else text)
    _move(source, "ddp_timeout", ("distributed_timeout",), "distributed_timeout")  # the name in transformers
    for name in ("data", "model", "scheduler", "train", "eval", "log"):
        if source.tree.get(name) is None:
            source.tree[name] = {}
    if source.tree.get("rewards", ()) is None:
        del source.tree["rewards"]
    list_rewards(source)
    bring_public_keys(source)
    _one_or_several(source)


def few_steps(source: Source, train: type[TrainConfig]) -> None:
    """A student of few steps is evaluated as it is trained; without rewards, there are none to write."""
    if issubclass(train, FewStepConfig):
        steps = train.model_fields["num_inference_steps"].default
        source.mapping("eval").setdefault("num_inference_steps", source.mapping("train").get("num_inference_steps", steps))
        source.mapping("eval").setdefault("guidance_scale", source.mapping("train").get("guidance_scale", 3.5))
    asks_none = not train.judged or source.mapping("train").get("offline") is True
    if asks_none and not source.tree.get("rewards"):
        source.tree["rewards"] = ()


def _gather_log_keys(source: Source) -> None:
    """Moves the log keys that stand at the top level into `log:`."""
    for key in MOVABLE:
        if key in source.tree and source.tree.get("log") is None:
            source.tree["log"] = {}
        _move(source, key, ("log", key), "log:")


def _move(source: Source, key: str, to: Keys, where: str) -> None:
    """Moves a key of the top level to where it belongs, if it is there.

    Args:
        where: as a message names the place.
    """
    if key not in source.tree:
        return
    holder, value, name = source.mapping(*to[:-1]), source.tree.pop(key), str(to[-1])
    if name in holder and holder[name] != value:
        source.problems.append(Problem((key,), f"is {show(value)} here and {show(holder[name])} in {where}; keep one"))
    elif name not in holder:
        holder[name] = value
        source.move((key,), to)


def _one_or_several(source: Source) -> None:
    """Whether `data:` names one data set or several."""
    data = source.mapping("data")
    for key in ALONE if data.get("datasets") is not None else ():
        if key in data:
            more = "datasets names folders too" if key == "dataset_dir" else "each of datasets has its own"
            source.problems.append(Problem(("data", key), f"{more}; keep one"))


def list_rewards(source: Source) -> None:
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
        except UserError as error:
            text = str(error)
        source.problems.append(Problem(("train", "trainer_type"), text))
    else:
        source.problems.append(Problem(("train", "trainer_type"), f"wants a name, got {show(name)}; e.g. grpo"))
    tree.pop("trainer_type")
    return TrainConfig


def _validated(source: Source, train: type[TrainConfig]) -> RunConfig:
    try:
        config = RunConfig[train].model_validate(source.tree)  # type: ignore[valid-type]
    except ValidationError as error:
        source.problems += [_problem(source, e["loc"], e, train) for e in error.errors() if e["type"] != "default_factory_not_called"]
        source.fail()
        raise
    source.problems += overrides_fit(source.tree, partial(misfit, source))
    source.fail()
    return config


def _problem(source: Source, keys: Keys, error: Any, train: type[TrainConfig]) -> Problem:
    if error["type"] != "extra_forbidden":
        return misfit(source, keys, error)
    section: type[Section] = sections(train).get(str(keys[0]), RunConfig) if len(keys) > 1 else RunConfig
    if len(keys) > 3 and keys[1] == "datasets":
        return Problem(keys, unknown_key(str(keys[-1]), PARTS.get(str(keys[-2]), DatasetConfig).own_keys(), {}))
    if len(keys) > 3 and keys[1] == "teachers":
        return Problem(keys, unknown_key(str(keys[-1]), TeacherConfig.own_keys(), {}))
    if len(keys) > 3 and str(keys[-2]) in INNER:
        return Problem(keys, unknown_key(str(keys[-1]), INNER[str(keys[-2])].own_keys(), {}))
    own = [*section.own_keys(), *(MOVABLE if section is RunConfig else ())]
    return Problem(keys, unknown_key(str(keys[-1]), own, homes(train, own)))


def misfit(source: Source, keys: Keys, error: Any) -> Problem:
    """The problem of a known key whose value pydantic refuses."""
    text = explain(error)
    if keys in source.written:  # what the environment holds may be a secret
        text = text.replace(show(error["input"]), f"what {source.written[keys]} stands for")
    elif (word := source.words.get(keys)) is not None:
        text = f'YAML reads {word} as {show(error["input"])}; write "{word}" where text is meant ({text})'
    return Problem(keys, text)
