"""RunConfig -> YAML, without secrets."""

import json
from collections.abc import Mapping
from typing import Any

from flow_factory.config.arguments import sections
from flow_factory.config.base import Section
from flow_factory.config.data import ALONE, DatasetEvalConfig
from flow_factory.config.nodes import Keys, Written
from flow_factory.config.rewards import RewardConfig
from flow_factory.config.run import RunConfig
from flow_factory.config.secrets import masked
from flow_factory.config.text import dump


def dump_config(config: RunConfig, secrets: bool = False) -> str:
    """YAML with every key as it was resolved; loading it gives an equal configuration.

    What came from the environment stands there as `${NAME}`; a secret that was written out is `***`, which is refused when it is loaded.

    Args:
        secrets: write them out, for text that is not kept.
    """
    return dump(_tree(config) if secrets else masked(_tree(config)))


def config_tree(config: RunConfig) -> dict[str, Any]:
    """The same for trackers: mappings, lists, text and numbers."""
    tree: dict[str, Any] = json.loads(json.dumps(masked(_tree(config))))
    return tree


def _tree(config: RunConfig) -> dict[str, Any]:
    tree = config.model_dump(mode="json")
    for name, section in sections(type(config.train)).items():
        _spread(tree[name], section)
    _alone_or_several(tree["data"])
    if "test_split" not in config.data.model_fields_set:
        tree["data"].pop("test_split", None)  # where it is written, a table without this split is refused
    for name in ("train", "eval"):
        if tree[name]["resolution"] == [tree[name]["height"], tree[name]["width"]]:
            del tree[name]["height"], tree[name]["width"]
    if not tree["rewards"]:
        del tree["rewards"]
    for reward in tree.get("rewards", []) + (tree["eval_rewards"] or []):
        _spread(reward, RewardConfig)
    _write_back(tree, config.written)
    return tree


def _alone_or_several(data: dict[str, Any]) -> None:
    if data["datasets"] is None:
        return
    for key in ALONE:
        del data[key]
    for entry in data["datasets"]:
        if entry["eval"] is not None:
            _spread(entry["eval"], DatasetEvalConfig)


def _spread(tree: dict[str, Any], section: type[Section]) -> None:
    if section.rest is not None:
        tree |= tree.pop(section.rest)


def _write_back(tree: dict[str, Any], written: Mapping[Keys, Written]) -> None:
    for keys, text in written.items():
        holder: Any = tree
        for key in keys[:-1]:
            holder = _inner(holder, key)
        if _inner(holder, keys[-1]) is not None:
            holder[keys[-1]] = text


def _inner(holder: Any, key: str | int) -> Any:
    """None without an entry. A key that was moved is also known by its old place."""
    if isinstance(holder, list) and isinstance(key, int):
        return holder[key] if key < len(holder) else None
    return holder.get(key) if isinstance(holder, dict) else None
