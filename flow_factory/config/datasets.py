"""`data.datasets:` a run of several data sets as runs of one each, and the rules for the list."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from pydantic import ValidationError

from flow_factory.config.base import show
from flow_factory.config.data import DatasetConfig, DatasetEvalConfig, DatasetTrainConfig
from flow_factory.config.eval import EvalConfig
from flow_factory.config.nodes import Keys, Problem
from flow_factory.config.rewards import RewardConfig
from flow_factory.config.run import RunConfig
from flow_factory.utils.registry import nearest


class Dataset(NamedTuple):
    """One data set of a run."""

    name: str
    """"" where it has none (`data.dataset_dir`)."""
    keys: Keys
    """Its position in the YAML."""
    config: RunConfig
    """The config of the run, restricted to this data set: its rewards with their weights, and its own `eval:`."""
    weight: int
    """0: not trained on."""
    evaluated: bool | None
    """None: where it has a test split."""
    most_tested: int | None
    """The number of its test rows that are used; None for all."""

    @property
    def key(self) -> str:
        """The prefix of its keys in messages."""
        return ".".join(map(str, self.keys))


def datasets_of(config: RunConfig) -> tuple[Dataset, ...]:
    """All data sets, in the order of the YAML."""
    if config.data.datasets is None:
        return (Dataset("", ("data",), config, 1, None, None),)
    return tuple(_dataset(config, k, entry) for k, entry in enumerate(config.data.datasets))


def trained_on(config: RunConfig) -> tuple[Dataset, ...]:
    """The data sets whose rows are trained on."""
    return tuple(dataset for dataset in datasets_of(config) if dataset.weight)


def dataset_named(config: RunConfig, name: str) -> Dataset:
    """The data set of this name."""
    return next(dataset for dataset in datasets_of(config) if dataset.name == name)


def evaluations(config: RunConfig) -> tuple[EvalConfig, ...]:
    """The `eval:` of each data set that may be evaluated; the run's own where none is."""
    return tuple(dataset.config.eval for dataset in datasets_of(config) if dataset.evaluated is not False) or (config.eval,)


def _dataset(config: RunConfig, k: int, entry: DatasetConfig) -> Dataset:
    train = entry.train or DatasetTrainConfig.model_validate({})
    tested = entry.eval or DatasetEvalConfig.model_validate({})
    own = {key: getattr(entry, key) for key in ("dataset_dir", "columns", "subset", "image_dir", "video_dir", "audio_dir")}
    own |= {"train_split": train.split, "test_split": tested.split, "max_dataset_size": train.max_dataset_size, "datasets": None}
    update = {
        "data": config.data.model_copy(update=own),
        "eval": EvalConfig.model_validate(overridden(config.eval.model_dump(), tested.overrides)),
        "rewards": for_dataset(config.rewards, entry.name),
        "eval_rewards": None if config.eval_rewards is None else for_dataset(config.eval_rewards, entry.name),
    }
    weight = 0 if entry.train is None else entry.train.weight
    alone = config.model_copy(update=update)
    return Dataset(entry.name, ("data", "datasets", k), alone, weight, entry.eval is not None, tested.max_dataset_size)


def for_dataset(rewards: Sequence[RewardConfig], name: str) -> tuple[RewardConfig, ...]:
    """The rewards that score a data set's samples, with their weights for it."""
    mine = (reward for reward in rewards if reward.applicable_datasets is None or name in reward.applicable_datasets)
    return tuple(
        reward.model_copy(update={"weight": reward.weight.get(name, 0.0)}) if isinstance(reward.weight, dict) else reward for reward in mine
    )


def overridden(section: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of `eval:` with a data set's overrides. A resolution also replaces height and width."""
    own = {key: value for key, value in overrides.items() if key in EvalConfig.own_keys()}
    call = {key: value for key, value in overrides.items() if key not in own}
    kept = {key: value for key, value in section.items() if not ("resolution" in own and key in ("height", "width"))}
    return kept | own | {"call": (kept.get("call") or {}) | call}


# -- what is asked of the list ----------------------------------------------------------------------------------------------------------


def overrides_fit(tree: Mapping[str, Any], explain: Callable[[Keys, Any], Problem]) -> Iterator[Problem]:
    """Checks the values in a data set's `eval:`, whose keys are known.

    Args:
        tree: the YAML's values.
        explain: a key and pydantic's error -> what to say.
    """
    for k, overrides in _overrides(tree):
        keys: Keys = ("data", "datasets", k, "eval")
        if "eval_freq" in overrides:
            yield Problem((*keys, "eval_freq"), "all data sets are evaluated at the same epochs; write it in eval:")
        try:
            EvalConfig.model_validate(overridden(tree["eval"], overrides))
        except ValidationError as error:
            yield from (explain((*keys, *e["loc"]), e) for e in error.errors() if e["loc"][0] in overrides)


def _overrides(tree: Mapping[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    entries = tree["data"].get("datasets")
    for k, entry in enumerate(entries if isinstance(entries, list) else ()):
        section = entry.get("eval") if isinstance(entry, dict) else None
        if isinstance(section, dict) and isinstance(overrides := section.get("overrides"), dict):
            yield k, overrides


def datasets_fit(config: RunConfig) -> Iterator[Problem]:
    """What is wrong with the list as a whole, and with what names its entries."""
    entries = config.data.datasets or ()
    names = [entry.name for entry in entries]
    for k, name in enumerate(names):
        if name in names[:k]:
            text = f"{name!r} is the name of data.datasets.{names.index(name)} too; write another"
            yield Problem(("data", "datasets", k, "name"), text)
    if config.train.given:
        for k, entry in enumerate(entries):
            if entry.train is not None and entry.train.weight != 1:
                text = f"{entry.train.weight}: {config.train.trainer_type} learns from the rows themselves, each once in a pass; write 1"
                yield Problem(("data", "datasets", k, "train", "weight"), text)
    if entries and not any(entry.train for entry in entries):
        yield Problem(("data", "datasets"), "none of them has train:, so there is nothing to train on; write train: {} in one")
    for section in ("rewards", "eval_rewards"):
        for k, reward in enumerate(getattr(config, section) or ()):
            yield from _routed(reward, (section, k), names)


def _routed(reward: RewardConfig, keys: Keys, names: Sequence[str]) -> Iterator[Problem]:
    """Whether a reward names data sets that there are."""
    here = partial(_known, names=names)
    applies = names if reward.applicable_datasets is None else reward.applicable_datasets
    if reward.applicable_datasets is not None:
        yield from here((*keys, "applicable_datasets"), reward.applicable_datasets)
        if not reward.applicable_datasets:
            text = "names no data set, so that nothing is scored; write null for all, or remove the reward"
            yield Problem((*keys, "applicable_datasets"), text)
    if isinstance(reward.weight, dict):
        yield from here((*keys, "weight"), reward.weight)
        if left := [name for name in applies if name in names and name not in reward.weight]:
            text = f"has no number for {', '.join(map(repr, left))}; write one (0 is only watched)"
            yield Problem((*keys, "weight"), text if not reward.weight.keys() - set(names) else f"{text}, or leave it out")


def known_datasets(keys: Keys, names: Sequence[str], config: RunConfig) -> Iterator[Problem]:
    """Yields a problem for each name in a list that no data set has."""
    return _known(keys, names, [entry.name for entry in config.data.datasets or ()])


def _known(keys: Keys, given: Sequence[str] | Mapping[str, float], names: Sequence[str]) -> Iterator[Problem]:
    for name in given:
        if name not in names:
            there = f" There are {', '.join(names)}" if names else " data.dataset_dir has no name: write data.datasets"
            yield Problem(keys, f"no data set {show(name)}.{nearest(name, list(names)) or there}")
