"""YAML text -> values and the lines they stand on, within limits that a config never meets; and back."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from flow_factory.config.base import ConfigError, show
from flow_factory.errors import UserError
from flow_factory.files import kind_of_file
from flow_factory.registry import nearest

Keys = tuple[str | int, ...]
"""The way to a value: names of mappings, positions in lists."""

_SCIENTIFIC = re.compile(r"([-+]?)(\d+\.?\d*|\.\d+)[eE]([-+]?)(\d+)")
_TEXT, _NUMBER, _LIST, _MERGE = (f"tag:yaml.org,2002:{kind}" for kind in ("str", "float", "seq", "merge"))
_TAGS = {_TEXT, _NUMBER, _LIST, _MERGE, *(f"tag:yaml.org,2002:{kind}" for kind in ("int", "bool", "null", "map"))}
DEEPEST = 32
"""Levels of mappings and lists."""
MOST = 50_000
"""Values of a file, those behind aliases and merges counted each time: ten aliases of ten aliases, ten times, have no end."""


class _Loader(yaml.SafeLoader):
    """SafeLoader for which a date is text, and which goes down so far and no further."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.depth > DEEPEST:
            raise yaml.composer.ComposerError(None, None, f"nested more than {DEEPEST} deep", self.peek_event().start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


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


def parse(text: str, where: str, problems: list[Problem], keys: Keys = ()) -> tuple[Any, list[tuple[Keys, int]]]:
    """(values, keys and line of everything in them) of a YAML text; what is only doubtful goes to `problems`.

    Args:
        where: begins a message.
        keys: the way to these values.

    Raises:
        ConfigError: it is no YAML, or more than a config needs: deeper than `DEEPEST`, larger than `MOST`, with tags of its own.
    """
    with _as_yaml(text, where):
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, []
        places = list(_walk(node, problems, keys))
        return _construct(loader, node), places


def read_foreign(path: Path) -> Any:
    """The values of a YAML file that is not the run's own; its keys are text.

    Raises:
        ConfigError: it cannot be read, or is no YAML.
    """
    return parse(text_of(path), str(path), [])[0]


def text_of(path: Path) -> str:
    """Raises:
    ConfigError: the file cannot be read, or is no UTF-8.
    """
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


def dump(tree: dict[str, Any]) -> str:
    """YAML text that `parse` takes back."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


@contextmanager
def _as_yaml(text: str, path: str) -> Iterator[None]:
    """Turns what is wrong with YAML into a `ConfigError`."""
    try:
        yield
    except UserError:
        raise
    except yaml.MarkedYAMLError as error:
        line = 1 if error.problem_mark is None else error.problem_mark.line + 1
        raise ConfigError(f"{path}:{line}: not valid YAML: {error.problem}{_yaml_hint(error.problem or '')}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"{path}:{line}: not valid YAML: the character {error.character:#04x} is not allowed; delete it") from error
    except ValueError as error:  # an escape such as "\U7fffffff"
        raise ConfigError(f"{path}: not valid YAML: no character has the number that an escape names: {error}") from error


def _walk(node: yaml.Node, problems: list[Problem], keys: Keys = ()) -> Iterator[tuple[Keys, int]]:
    """(keys, line) of everything in a node. Text that others read as a number becomes one, and is a problem, as are keys written twice."""
    for number, found in enumerate(_inside(node, keys, problems, frozenset())):
        if number > MOST:
            raise yaml.constructor.ConstructorError(None, None, f"more than {MOST} values, with those of its aliases", node.start_mark)
        yield found


def _inside(node: yaml.Node, keys: Keys, problems: list[Problem], within: frozenset[yaml.Node]) -> Iterator[tuple[Keys, int]]:
    if node in within:
        raise yaml.constructor.ConstructorError(None, None, "an alias refers to itself", node.start_mark)
    if node.tag not in _TAGS:
        raise yaml.constructor.ConstructorError(None, None, f"a config has no values of the kind {node.tag}", node.start_mark)
    if isinstance(node, yaml.ScalarNode):
        _check_characters(node)
        _check_number(node, keys, problems)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield (*keys, index), item.start_mark.line + 1
            yield from _inside(item, (*keys, index), problems, within | {node})
    elif isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be text", key.start_mark)
            _check_characters(key)
            here = (*keys, key.value)
            if key.tag not in (_TEXT, _MERGE):
                problems.append(Problem(here, f"a key must be text; quote it: {show(key.value)}"))
                key.tag = _TEXT
            if key.value in seen:
                problems.append(Problem(here, f"is written twice, first on line {seen[key.value]}; keep one"))
            seen[key.value] = line
            yield here, line
            yield from _inside(value, here, problems, within | {node})


def _check_characters(node: yaml.ScalarNode) -> None:
    """A NUL ends a path, and no file can hold half of a character."""
    for character in node.value:
        if character == "\0" or "\ud800" <= character <= "\udfff":
            text = f"the character {ord(character):#06x} cannot be used; delete it"
            raise yaml.constructor.ConstructorError(None, None, text, node.start_mark)


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
    except (ValueError, IndexError, KeyError) as error:  # a tag such as !!int before other text; a number without end
        text = "a value is no number, or not what its tag says, or has more than 4300 digits"
        raise yaml.constructor.ConstructorError(None, None, text, node.start_mark) from error


def _yaml_hint(problem: str) -> str:
    if "'\\t'" in problem:
        return "; indent with spaces, not tabs"
    return "; check the indentation and the colon after each key" if re.search("expected|not allowed", problem) else ""
