"""YAML text -> values and the lines they stand on, within limits that a config never meets; and back."""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

import yaml

from flow_factory.config.base import ConfigError, show
from flow_factory.config.nodes import LIST, TEXT, Keys, Loader, Walk, Written, scientific
from flow_factory.utils.errors import UserError
from flow_factory.utils.files import kind_of_file
from flow_factory.utils.registry import nearest


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes text which looks like a number, and writes lists of values in one line."""

    def text(self, value: str) -> yaml.Node:
        return self.represent_scalar(TEXT, value.replace("${", "$${"), style="'" if scientific(value) else None)

    def written(self, value: Written) -> yaml.Node:
        return self.represent_scalar(TEXT, str(value), style='"' if value.quoted else None)

    def list(self, value: list[Any]) -> yaml.Node:
        return self.represent_sequence(LIST, value, flow_style=not any(isinstance(item, (dict, Written)) for item in value))


_Dumper.add_representer(str, _Dumper.text)
_Dumper.add_representer(Written, _Dumper.written)
_Dumper.add_representer(list, _Dumper.list)


def parse(text: str, where: str, walk: Walk | None = None, keys: Keys = ()) -> tuple[Any, Walk]:
    """The values of a YAML text, and what there is to say of them.

    Args:
        where: begins a message.
        walk: how to go through them, as a run's YAML by default.
        keys: the way to these values.

    Raises:
        ConfigError: it is not YAML, or more than a config needs: deeper than `DEEPEST`, larger than `MOST`, with tags of its own.
    """
    walk = walk or Walk()
    with _as_yaml(text, where):
        loader = Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, walk
        walk.node(node, keys)
        return _construct(loader, node), walk


def read_foreign(path: Path) -> Any:
    """The values of a YAML file that is not the run's own; its keys are text.

    Raises:
        ConfigError: it cannot be read, or is not YAML.
    """
    return parse(text_of(path), str(path), Walk(environment=None))[0]


def text_of(path: Path) -> str:
    """Raises:
    ConfigError: the file cannot be read, or is not UTF-8.
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


class _ValueDumper(yaml.SafeDumper):
    """SafeDumper for values of Python that have a YAML: paths, numbers of NumPy."""

    def other(self, value: Any) -> yaml.Node:
        if isinstance(value, PurePath):
            return self.represent_str(str(value))
        if hasattr(value, "item") and getattr(value, "shape", None) == ():
            return self.represent_data(value.item())
        kind = "a function" if callable(value) else f"a value of the type {type(value).__name__}"
        raise ConfigError(f"{kind}, where a config has text, numbers, true, false, null, lists and mappings: {show(value)}")


_ValueDumper.add_multi_representer(object, _ValueDumper.other)


def yaml_of(value: Any, where: str, inline: bool = False) -> str:
    """YAML text of a value of Python, in which `${NAME}` is what it is in a file.

    Args:
        where: begins a message.
        inline: in one line.

    Raises:
        ConfigError: a config has no such values.
    """
    try:
        text = yaml.dump(value, Dumper=_ValueDumper, sort_keys=False, allow_unicode=True, default_flow_style=inline, width=math.inf)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    return text.removesuffix("...\n").strip()


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


def _construct(loader: Loader, node: yaml.Node) -> Any:
    try:
        return loader.construct_document(node)
    except (ValueError, IndexError, KeyError) as error:  # a tag such as !!int before other text; a number without end
        text = "a value is not a number, or not what its tag says, or has more than 4300 digits"
        raise yaml.constructor.ConstructorError(None, None, text, node.start_mark) from error


def _yaml_hint(problem: str) -> str:
    if "'\\t'" in problem:
        return "; indent with spaces, not tabs"
    hint = "; check the indentation and the colon after each key" if re.search("expected|not allowed", problem) else ""
    return f"{hint}, and quote ${{NAME}} inside braces" if "'{'" in problem else hint
