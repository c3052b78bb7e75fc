"""The YAML as written: its values, and where each key stands."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flow_factory.config.base import ConfigError, show
from flow_factory.config.nodes import Keys, Problem, Walk, Written
from flow_factory.config.secrets import MASK, is_secret, masked_text
from flow_factory.config.text import parse, text_of, yaml_of


@dataclass(frozen=True)
class Mark:
    """Where a key was written, and how."""

    order: int
    place: str
    written: Keys


@dataclass
class Source:
    """A YAML file, with overrides applied to it."""

    name: str
    tree: dict[str, Any] = field(default_factory=dict)
    marks: dict[Keys, Mark] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    words: dict[Keys, str] = field(default_factory=dict)
    """Values that are yes, no, on or off in the file."""
    written: dict[Keys, Written] = field(default_factory=dict)
    """Values that came from the environment, as they are in the file."""

    def mapping(self, *keys: str | int) -> dict[str, Any]:
        """The mapping at `keys`, to be changed in place; an empty one where there is none."""
        value: Any = self.tree
        for key in keys:
            value = value.get(key, {}) if isinstance(value, dict) else value[key]
        return value if isinstance(value, dict) else {}

    def move(self, old: Keys, new: Keys) -> None:
        """Makes what is known of everything under `old` hold under `new`."""
        for known in self._known:
            known.update({new + keys[len(old) :]: value for keys, value in known.items() if keys[: len(old)] == old})

    def forget(self, old: Keys) -> None:
        """Drops what is known of everything under `old`."""
        for known in self._known:
            for keys in [keys for keys in known if keys[: len(old)] == old]:
                del known[keys]
        self.problems = [problem for problem in self.problems if problem.keys[: len(old)] != old]

    def learn(self, walk: Walk, marks: dict[Keys, Mark]) -> None:
        """Takes over what a walk through values has found."""
        self.marks |= marks
        self.problems += walk.problems
        self.notices += walk.notices
        self.words |= walk.words
        self.written |= walk.written

    @property
    def _known(self) -> tuple[dict[Keys, Any], ...]:
        return self.marks, self.words, self.written

    def complaint(self, problem: Problem) -> tuple[int, str]:
        """(where it sorts, the line to print)."""
        known = next(n for n in range(len(problem.keys), -1, -1) if problem.keys[:n] in self.marks)
        mark = self.marks[problem.keys[:known]]
        written = ".".join(map(str, mark.written + problem.keys[known:]))
        if known < len(problem.keys):  # a section that overrides have made has no line of the file
            mark = next((inner for keys, inner in self.marks.items() if keys[: len(problem.keys)] == problem.keys), mark)
        return mark.order, f"{mark.place}: {written}: {problem.text}" if written else f"{mark.place}: {problem.text}"

    def fail(self) -> None:
        """Stops here if there are problems.

        Raises:
            ConfigError: all of them, in the order of the file.
        """
        if self.problems:
            lines = sorted({self.complaint(problem) for problem in self.problems})
            raise ConfigError("\n".join(line for _, line in lines))


def read(path: Path) -> Source:
    """Reads a YAML file.

    Raises:
        ConfigError: it cannot be read, or is not a YAML mapping. Lesser problems are kept in the result.
    """
    return from_text(text_of(path), str(path))


def from_text(text: str, name: str) -> Source:
    """The content of a YAML file of this name.

    Raises:
        ConfigError: it is not a YAML mapping.
    """
    source = Source(name, marks={(): Mark(1, f"{name}:1", ())})
    tree, walk = parse(text, name)
    if not isinstance(tree, dict):
        what = "is empty" if tree is None else "is not a mapping of keys to values"
        raise ConfigError(f"{name}:1: the file {what}; it wants sections such as model:, train: and rewards:")
    source.learn(walk, {keys: Mark(line, f"{name}:{line}", keys) for keys, line in walk.lines.items()})
    source.tree = tree
    return source


def values(tree: Mapping[str, Any]) -> Source:
    """The values of a mapping, as if a file had them.

    Raises:
        ConfigError: it has values that no file can have.
    """
    name = "config"
    found, walk = parse(yaml_of(dict(tree), name), name, Walk(typed=True))
    source = Source(name, found, {(): Mark(1, name, ())})
    source.learn(walk, {keys: Mark(line, name, keys) for keys, line in walk.lines.items()})
    return source


def assignment(key: str, value: Any) -> str:
    """An override, of a value of Python.

    Raises:
        ConfigError: a config has no such values.
    """
    return f"{key}={yaml_of(value, f'override {show(key)}', inline=True)}"


def override(source: Source, text: str) -> None:
    """Applies `section.key=value`; the value is read as YAML, and `1e-4` is a number.

    Raises:
        ConfigError: the text is not an override, or its path leads nowhere.
    """
    path, equals, value = text.partition("=")
    keys: Keys = tuple(int(key) if key.isdecimal() and len(key) < 10 else key for key in path.strip().split("."))
    shown = f"override {show(f'{path}={MASK}' if any(is_secret(str(key)) for key in keys) else masked_text(text))}"
    if not equals or "" in keys:
        raise ConfigError(f"{shown}: wants section.key=value, e.g. train.learning_rate=1e-4")
    parsed, walk = parse(value, shown, Walk(typed=True), keys)
    holder: Any = source.tree
    for depth, key in enumerate(keys[:-1]):
        holder = _step(holder, key, shown, keys[:depth])
    _step(holder, keys[-1], shown, keys[:-1])
    holder[keys[-1]] = parsed
    source.forget(keys)
    source.learn(walk, {known: Mark(0, shown, known) for known in (keys, *walk.lines)})


def _step(holder: Any, key: str | int, shown: str, so_far: Keys) -> Any:
    where = ".".join(map(str, so_far)) or "the file"
    if isinstance(holder, list) and isinstance(key, int):
        if key >= len(holder):
            raise ConfigError(f"{shown}: {where} has no entry {key}; it has 0 to {len(holder) - 1}")
        return holder[key]
    if not isinstance(holder, dict) or isinstance(key, int):
        kind = "a mapping" if isinstance(holder, dict) else "a list" if isinstance(holder, list) else "not a mapping"
        raise ConfigError(f"{shown}: {where} is {kind}, so {show(key)} leads nowhere")
    if holder.get(key) is None:
        holder[key] = {}
    return holder[key]
