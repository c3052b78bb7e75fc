"""Which keys of a run's YAML were written with another value than their default, for its report."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from flow_factory.config.base import Section, show
from flow_factory.config.dump import config_tree
from flow_factory.config.help import default_of
from flow_factory.config.nodes import Keys
from flow_factory.config.run import RunConfig


class Setting(NamedTuple):
    """A key of a run's YAML."""

    key: str
    """`section.key`, `rewards.0.weight`."""
    value: str
    """As in YAML, without secrets."""
    default: str | None
    """None: the key has none, or the value was not written, or is the default."""
    changed: bool
    """Whether it was written with another value than its default; arguments of a pipeline, which have no default here, are."""


def settings(config: RunConfig) -> list[Setting]:
    """Every key of the resolved config, in the order of the YAML."""
    defaults = dict(_written(config, ()))
    flat = flattened(config_tree(config))
    return [Setting(".".join(map(str, keys)), show(value), defaults.get(keys), keys in defaults) for keys, value in flat]


def flattened(tree: Any, keys: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """(keys, value) of each leaf; a list of values is one, and so is what is empty."""
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            yield from flattened(value, (*keys, key))
    elif isinstance(tree, list) and any(isinstance(entry, Mapping) for entry in tree):
        for index, value in enumerate(tree):
            yield from flattened(value, (*keys, index))
    else:
        yield keys, tree


def _written(section: Section, keys: Keys) -> Iterator[tuple[Keys, str | None]]:
    """(keys, default) of what was written and differs."""
    for name, field in type(section).model_fields.items():
        value, here = getattr(section, name), (*keys, name)
        if isinstance(value, Section):
            yield from _written(value, here)
        elif isinstance(value, Sequence) and any(isinstance(entry, Section) for entry in value):
            for index, entry in enumerate(value):
                yield from _written(entry, (*here, index))
        elif name == section.rest:
            yield from ((keys + inner, None) for inner, _ in flattened(value) if inner)
        elif name in section.model_fields_set and value != field.get_default(call_default_factory=True):
            shown = None if field.is_required() else default_of(field)
            yield from ((here + inner, shown) for inner, _ in flattened(value))
