"""The YAML as written: its values, and where each key stands."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from flow_factory.config.base import ConfigError, show
from flow_factory.files import kind_of_file
from flow_factory.registry import nearest

Keys = tuple[str | int, ...]
"""The way to a value: names of mappings, positions in lists."""

_SCIENTIFIC = re.compile(r"([-+]?)(\d+\.?\d*|\.\d+)[eE]([-+]?)(\d+)")
_TEXT, _NUMBER, _LIST, _MERGE = (f"tag:yaml.org,2002:{kind}" for kind in ("str", "float", "seq", "merge"))


class _Loader(yaml.SafeLoader):
    """SafeLoader for which a date is text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes text which looks like a number, and writes lists of values in one line."""

    def text(self, value: str) -> yaml.Node:
        return self.represent_scalar(_TEXT, value, style="'" if _SCIENTIFIC.fullmatch(value) else None)

    def list(self, value: list[Any]) -> yaml.Node:
        return self.represent_sequence(_LIST, value, flow_style=not any(isinstance(item, dict) for item in value))


_Dumper.add_representer(str, _Dumper.text)
_Dumper.add_representer(list, _Dumper.list)


@dataclass(frozen=True, order=True)
class Problem:
    """Something wrong with the value at `keys`."""

    keys: Keys
    text: str


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

    def mapping(self, *keys: str | int) -> dict[str, Any]:
        """The mapping at `keys`, to be changed in place; an empty one where there is none."""
        value: Any = self.tree
        for key in keys:
            value = value[key]
        return value if isinstance(value, dict) else {}

    def move(self, old: Keys, new: Keys) -> None:
        """Makes the marks of everything under `old` hold under `new`."""
        self.marks |= {new + keys[len(old) :]: mark for keys, mark in self.marks.items() if keys[: len(old)] == old}

    def complaint(self, problem: Problem) -> tuple[int, str]:
        """(where it sorts, the line to print)."""
        known = next(n for n in range(len(problem.keys), -1, -1) if problem.keys[:n] in self.marks)
        mark = self.marks[problem.keys[:known]]
        written = ".".join(map(str, mark.written + problem.keys[known:]))
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
        ConfigError: it cannot be read, or is no YAML mapping. Lesser problems are kept in the result.
    """
    source = Source(str(path), marks={(): Mark(1, f"{path}:1", ())})
    text = _text(path)
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            what = "is empty" if node is None else "is no mapping of keys to values"
            raise ConfigError(f"{path}:1: the file {what}; it wants sections such as model:, train: and rewards:")
        for keys, line in _walk(node, (), source.problems, frozenset()):
            source.marks[keys] = Mark(line, f"{path}:{line}", keys)
        source.tree = _construct(loader, node)
    except yaml.MarkedYAMLError as error:
        line = 1 if error.problem_mark is None else error.problem_mark.line + 1
        raise ConfigError(f"{path}:{line}: not valid YAML: {error.problem}{_yaml_hint(error.problem or '')}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"{path}:{line}: not valid YAML: the character {error.character:#04x} is not allowed; delete it") from error
    return source


def override(source: Source, text: str) -> None:
    """Applies `section.key=value`; the value is read as YAML, and `1e-4` is a number.

    Raises:
        ConfigError: the text is no override, or its path leads nowhere.
    """
    path, equals, value = text.partition("=")
    keys: Keys = tuple(int(key) if key.isdecimal() else key for key in path.strip().split("."))
    if not equals or "" in keys:
        raise ConfigError(f"override {show(text)}: wants section.key=value, e.g. train.learning_rate=1e-4")
    try:
        loader = _Loader(value)
        node = loader.get_single_node()
        inner = [] if node is None else list(_walk(node, keys, [], frozenset()))
        parsed = None if node is None else _construct(loader, node)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {show(text)}: the value is not valid YAML; quote text with special characters") from error
    holder: Any = source.tree
    for depth, key in enumerate(keys[:-1]):
        holder = _step(holder, key, text, keys[:depth])
    _step(holder, keys[-1], text, keys[:-1])
    holder[keys[-1]] = parsed
    source.marks = {k: mark for k, mark in source.marks.items() if k[: len(keys)] != keys}
    source.marks |= {k: Mark(0, f"override {show(text)}", k) for k in [keys, *(k for k, _ in inner)]}


def dump(tree: dict[str, Any]) -> str:
    """YAML text that `read` takes back."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _step(holder: Any, key: str | int, text: str, so_far: Keys) -> Any:
    where = ".".join(map(str, so_far)) or "the file"
    if isinstance(holder, list) and isinstance(key, int):
        if key >= len(holder):
            raise ConfigError(f"override {show(text)}: {where} has no entry {key}; it has 0 to {len(holder) - 1}")
        return holder[key]
    if not isinstance(holder, dict) or isinstance(key, int):
        kind = "a mapping" if isinstance(holder, dict) else "a list" if isinstance(holder, list) else "no mapping"
        raise ConfigError(f"override {show(text)}: {where} is {kind}, so {show(key)} leads nowhere")
    if holder.get(key) is None:
        holder[key] = {}
    return holder[key]


def _text(path: Path) -> str:
    try:
        if (other := kind_of_file(path)) is not None:
            raise ConfigError(f"{path}: {other}, where a YAML file belongs")
        data = path.read_bytes()
    except FileNotFoundError as error:
        siblings = [str(p) for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise ConfigError(f"{path}: there is no such file.{nearest(str(path), siblings)}") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}:{line}: not UTF-8 text (byte {data[error.start]:#04x}); save the file as UTF-8") from error


def _walk(node: yaml.Node, keys: Keys, problems: list[Problem], within: frozenset[yaml.Node]) -> Iterator[tuple[Keys, int]]:
    """(keys, line) of everything in a node. Text that others read as a number becomes one, and is a problem, as are keys written twice."""
    if node in within:
        raise yaml.constructor.ConstructorError(None, None, "an alias refers to itself", node.start_mark)
    if isinstance(node, yaml.ScalarNode):
        _check_number(node, keys, problems)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield (*keys, index), item.start_mark.line + 1
            yield from _walk(item, (*keys, index), problems, within | {node})
    elif isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be text", key.start_mark)
            here = (*keys, key.value)
            if key.tag not in (_TEXT, _MERGE):
                problems.append(Problem(here, f"a key must be text; quote it: {show(key.value)}"))
                key.tag = _TEXT
            if key.value in seen:
                problems.append(Problem(here, f"is written twice, first on line {seen[key.value]}; keep one"))
            seen[key.value] = line
            yield here, line
            yield from _walk(value, here, problems, within | {node})


def _check_number(node: yaml.ScalarNode, keys: Keys, problems: list[Problem]) -> None:
    match = _SCIENTIFIC.fullmatch(node.value)
    if node.tag != _TEXT or node.style is not None or match is None:
        return
    sign, mantissa, exponent_sign, exponent = match.groups()
    mantissa = mantissa + "0" if mantissa.endswith(".") else mantissa if "." in mantissa else mantissa + ".0"
    right = f"{sign}{mantissa}e{exponent_sign or '+'}{exponent}"
    problems.append(Problem(keys, f"YAML reads {node.value} as text; write {right} (or quote it where text is meant)"))
    node.tag, node.value = _NUMBER, right


def _construct(loader: _Loader, node: yaml.Node) -> Any:
    try:
        return loader.construct_document(node)
    except ValueError as error:  # a tag such as !!int before other text
        raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from error


def _yaml_hint(problem: str) -> str:
    if "'\\t'" in problem:
        return "; indent with spaces, not tabs"
    return "; check the indentation and the colon after each key" if re.search("expected|not allowed", problem) else ""
