"""`config_help`: the schema as tables."""

import re
import textwrap
import types
from collections.abc import Iterable
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from flow_factory.config.algorithms import TRAIN_CONFIGS
from flow_factory.config.base import ConfigError, Section, Shown, show
from flow_factory.config.data import DataConfig
from flow_factory.config.eval import EvalConfig
from flow_factory.config.log import MOVABLE, LogConfig
from flow_factory.config.model import ModelConfig
from flow_factory.config.monitor import WatchConfig
from flow_factory.config.networks import NetworkConfig
from flow_factory.config.profile import ProfileConfig
from flow_factory.config.rewards import RewardConfig
from flow_factory.config.run import RunConfig
from flow_factory.config.scheduler import SchedulerConfig
from flow_factory.utils.registry import nearest

WIDTH = 150
Row = tuple[str, str, str, str]
HEAD: Row = ("key", "type", "default", "meaning")
_CELL = 30
_TITLES = {"run": "Top level", "rewards": "rewards: and eval_rewards: (one mapping, or a list)", "optimizers": "optimizers: (a list)",
           "monitor": "monitor: (a list)"}  # fmt: skip
PAGE_INTRO = """\
Every key of a YAML, with its type, its default and its meaning. `ff-train --help-config` prints the same; add the name of a section or an
algorithm for that part alone. An unknown key is an error that names the key, its line and the key you meant."""

SECTIONS: dict[str, tuple[type[Section], ...]] = {
    "run": (RunConfig,),
    "data": (DataConfig,),
    "model": (ModelConfig,),
    "scheduler": (SchedulerConfig,),
    "train": tuple(TRAIN_CONFIGS.values()),
    "eval": (EvalConfig,),
    "log": (LogConfig,),
    "rewards": (RewardConfig,),
    "optimizers": (NetworkConfig,),
    "monitor": (WatchConfig,),
    "profile": (ProfileConfig,),
}


def config_help(section: str | None = None) -> str:
    """Every key of a section (of all, without one), or of `train:` under one algorithm: type, default, meaning.

    Raises:
        ConfigError: no such section or algorithm.
    """
    if section is not None and section not in SECTIONS:
        return _table("train", _algorithm(section))
    names = list(SECTIONS) if section is None else [section]
    return "\n\n".join(_table(name, schema) if name != "train" else _train() for name in names for schema in SECTIONS[name][:1])


def config_page() -> str:
    """The same as one page of Markdown: the configuration reference of the site."""
    parts = ["# Configuration", PAGE_INTRO]
    for name, schemas in SECTIONS.items():
        if name != "train":
            parts += [f"## {_TITLES.get(name, f'{name}:')}", _intro(schemas[0]), _markdown(_rows(schemas[0]))]
            continue
        parts += ["## train:", schemas[0].__mro__[1].__doc__ or ""]
        for who, rows in _train_groups().items():
            title = "any `trainer_type`" if len(who) == len(TRAIN_CONFIGS) else f"`trainer_type: {', '.join(who)}`"
            parts += [f"### train: with {title}", TRAIN_CONFIGS[who[0]].__doc__ or "" if len(who) == 1 else "", _markdown(rows)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown(rows: Iterable[Row]) -> str:
    """As a table whose cells mean what they say: Markdown's own signs are escaped."""
    cells = [tuple(re.sub(r"[|<*]", r"\\\g<0>", cell) for cell in row) for row in rows]
    lines = [f"| `{key}` | {kind} | {default} | {meaning} |" for key, kind, default, meaning in cells]
    return "\n".join([f"| {' | '.join(HEAD)} |", "|---|---|---|---|", *lines])


def _train() -> str:
    """The keys that all algorithms have alike, and then what some or one of them adds or has another default for."""
    blocks = []
    for who, mine in _train_groups().items():
        everybody = len(who) == len(TRAIN_CONFIGS)
        title = f"train: with {'any ' if everybody else ''}trainer_type: {', '.join(who)}"
        intro = [textwrap.fill(TRAIN_CONFIGS[who[0]].__doc__ or "", WIDTH)] if len(who) == 1 else []
        blocks.append("\n".join([title, *intro, "", *_aligned([HEAD, *mine])]))
    return "\n\n".join(blocks)


def _train_groups() -> dict[tuple[str, ...], list[Row]]:
    """The keys of `train:` under those algorithms that have them alike; the keys of all come first."""
    named: Row = ("trainer_type", "text", "grpo", "algorithm")
    rows = {name: [row if row[0] != named[0] else named for row in _rows(schema)] for name, schema in TRAIN_CONFIGS.items()}
    owners: dict[Row, tuple[str, ...]] = {}
    for row in dict.fromkeys(row for mine in rows.values() for row in mine):
        owners[row] = tuple(name for name, mine in rows.items() if row in mine)
    return {who: [row for row, whose in owners.items() if whose == who] for who in sorted(set(owners.values()), key=_by_size)}


def _by_size(who: tuple[str, ...]) -> tuple[int, int]:
    """Many algorithms first, then in the algorithms' own order."""
    return -len(who), list(TRAIN_CONFIGS).index(who[0])


def _algorithm(name: str) -> type[Section]:
    from flow_factory.algorithms import ALGORITHMS  # they import this package

    name = ALGORITHMS.canonical(name)
    if name in TRAIN_CONFIGS:
        return TRAIN_CONFIGS[name]
    known = [*SECTIONS, *TRAIN_CONFIGS]
    if not set(name) & set(".:"):
        raise ConfigError(f"no section or algorithm {name!r}.{nearest(name, known)} Known: {', '.join(known)}")
    return ALGORITHMS[name].Config


def _table(name: str, schema: type[Section]) -> str:
    title = _TITLES.get(name, f"{name}:")
    if name == "train":
        title += f" with trainer_type: {schema.model_fields['trainer_type'].default}"
    return "\n".join([title, textwrap.fill(_intro(schema), WIDTH), "", *_aligned([HEAD, *_rows(schema)])])


def _intro(schema: type[Section]) -> str:
    if schema is RunConfig:
        return f"{', '.join(MOVABLE)} are accepted here and in log:. Sections: {', '.join(SECTIONS)[5:]}, eval_rewards."
    return schema.__doc__ or ""


def _rows(schema: type[Section]) -> list[Row]:
    """(key, type, default, meaning) of its keys."""
    fields = schema.model_fields.items()
    return [(key, _kind(field), default_of(field), field.description or "") for key, field in fields if _is_key(schema, key)]


def _is_key(schema: type[Section], key: str) -> bool:
    return key in schema.own_keys() and not (schema is RunConfig and (key in SECTIONS or key == "eval_rewards"))


def _aligned(rows: Iterable[tuple[str, str, str, str]]) -> list[str]:
    rows = list(rows)
    widths = [min(_CELL, max(len(row[column]) for row in rows)) for column in range(3)]
    lines = []
    for row in rows:
        cells = [textwrap.wrap(cell, width) or [""] for cell, width in zip(row, [*widths, WIDTH - sum(widths) - 6], strict=True)]
        for k in range(max(map(len, cells))):
            parts = [(cell[k] if k < len(cell) else "").ljust(width) for cell, width in zip(cells, [*widths, 0], strict=True)]
            lines.append("  ".join(parts).rstrip())
    return lines


def _kind(field: FieldInfo) -> str:
    shown = next((m.kind for m in field.metadata if isinstance(m, Shown) and m.kind), None)
    return shown or _type_name(field.annotation)


def _type_name(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return " | ".join(map(str, get_args(annotation)))
    if get_origin(annotation) in (Union, types.UnionType):
        return " | ".join(_type_name(a) for a in get_args(annotation))
    if get_origin(annotation) is not None and hasattr(annotation, "__metadata__"):
        shown = next((m.kind for m in annotation.__metadata__ if isinstance(m, Shown)), None)
        return shown or _type_name(annotation.__origin__)
    return "null" if annotation is type(None) else "text" if annotation is str else annotation.__name__


def default_of(field: FieldInfo) -> str:
    """As the help shows it."""
    shown = next((m.default for m in field.metadata if isinstance(m, Shown) and m.default), None)
    if shown is not None:
        return shown
    return "required" if field.is_required() else field.default if isinstance(field.default, str) else show(field.default)
