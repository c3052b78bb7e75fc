"""The nodes of a YAML: their lines, values that YAML reads in an unexpected way, and values from the environment."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import yaml

from flow_factory.config.base import show
from flow_factory.config.secrets import is_masked, is_secret

Keys = tuple[str | int, ...]
"""The path to a value: keys of mappings, indices of lists."""
TEXT, WHOLE, NUMBER, BOOL, LIST, MERGE = (f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "seq", "merge"))
TAGS = {TEXT, WHOLE, NUMBER, BOOL, LIST, MERGE, "tag:yaml.org,2002:null", "tag:yaml.org,2002:map"}
DEEPEST = 32
"""The largest depth of mappings and lists."""
MOST = 50_000
"""The largest number of values of a file. Values behind aliases are counted each time, because nested aliases grow exponentially."""
LARGEST = 2**63 - 1
_SCIENTIFIC = re.compile(r"([-+]?)(\d+\.?\d*|\.\d+)[eE]([-+]?)(\d+)")
_PLAIN_INT = re.compile(r"[-+]?(0|[1-9]\d*)")
_PLAIN_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_VARIABLE = re.compile(r"\$(\$?)\{([^{}]*)\}")
_NAMED = re.compile(r"([A-Za-z_]\w*)(?::-(.*))?", re.DOTALL)
_UNUSABLE = re.compile(r"[\x00\ud800-\udfff]")
"""NUL, which ends a path, and lone surrogates, which no file can store."""


@dataclass(frozen=True, order=True)
class Problem:
    """An error in the value at `keys`."""

    keys: Keys
    text: str


class Loader(yaml.SafeLoader):
    """SafeLoader for which a date is text, and which goes down so far and no further."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.depth > DEEPEST:
            raise yaml.composer.ComposerError(None, None, f"nested more than {DEEPEST} deep", self.peek_event().start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class Written(str):
    """Text with `${NAME}` in it, as it was written."""

    quoted: bool = False


def scientific(text: str) -> bool:
    """Whether the text is a number for others than YAML."""
    return _SCIENTIFIC.fullmatch(text) is not None


@dataclass
class Walk:
    """Goes through a node once; text that others read as a number becomes one, and is a problem."""

    environment: Mapping[str, str] | None = field(default_factory=lambda: os.environ)
    """The values of `${NAME}`; None does not replace it."""
    typed: bool = False
    """Whether it was typed on the command line, where 1e-4 is a number without a word."""
    lines: dict[Keys, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    words: dict[Keys, str] = field(default_factory=dict)
    """The words yes, no, on and off, which YAML reads as true and false."""
    written: dict[Keys, Written] = field(default_factory=dict)
    """Values that came from the environment."""
    _filled: dict[int, Written] = field(default_factory=dict)
    _left: int = MOST

    def node(self, node: yaml.Node, keys: Keys = (), within: frozenset[yaml.Node] = frozenset()) -> None:
        """Raises:
        ConstructorError: a node within itself, too many values, or a key that is not text.
        """
        self._left -= 1
        if self._left < 0:
            raise _refused(f"more than {MOST} values, with those of its aliases", node)
        if node in within:
            raise _refused("an alias refers to itself", node)
        if node.tag not in TAGS:
            raise _refused(f"a config has no values of the kind {node.tag}", node)
        if isinstance(node, yaml.ScalarNode):
            self._scalar(node, keys)
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                here = (*keys, index)
                self.lines[here] = item.start_mark.line + 1
                self.node(item, here, within | {node})
        elif isinstance(node, yaml.MappingNode):
            self._mapping(node, keys, within | {node})

    def _mapping(self, node: yaml.MappingNode, keys: Keys, within: frozenset[yaml.Node]) -> None:
        seen: dict[str, tuple[int, yaml.Node]] = {}
        for key, value in sorted(node.value, key=lambda pair: pair[0].tag != MERGE):  # what is merged first, for own keys win
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise _refused("a key must be text", key)
            if key.tag == MERGE:
                for merged in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                    self.node(merged, keys, within)
                continue
            here = (*keys, key.value)
            if key.tag != TEXT:
                self.problems.append(Problem(here, f"a key must be text; quote it: {show(key.value)}"))
                key.tag = TEXT
            self._characters(key)
            if key.value in seen:
                self._again(here, line, value, *seen[key.value])
            seen[key.value] = (line, value)
            self.lines[here] = line
            self.node(value, here, within)

    def _again(self, keys: Keys, line: int, value: yaml.Node, first: int, other: yaml.Node) -> None:
        if _same(value, other):
            self.notices.append(f"{'.'.join(map(str, keys))} is written twice, on lines {first} and {line}, with the same value")
        else:
            self.problems.append(Problem(keys, f"is written twice, first on line {first}, with another value; keep one"))

    def _scalar(self, node: yaml.ScalarNode, keys: Keys) -> None:
        if id(node) in self._filled:  # an alias
            self.written[keys] = self._filled[id(node)]
            return
        if node.tag == TEXT and self.environment is not None:
            self._fill(node, keys, self.environment)
        self._characters(node)
        if node.tag == TEXT and is_masked(node.value):
            text = "*** stands for a secret that was not written down; write ${NAME}, and set NAME in the environment"
            self.problems.append(Problem(keys, text))
        if node.style is None:
            self._number(node, keys)
        if node.tag == BOOL and node.value.lower() not in ("true", "false"):
            self.words[keys] = node.value

    def _fill(self, node: yaml.ScalarNode, keys: Keys, environment: Mapping[str, str]) -> None:
        """Puts the environment's values into a text; one that is `${NAME}` alone, without quotes, becomes what YAML reads there."""
        written, missing = Written(node.value), []
        written.quoted = node.style is not None

        def value(match: re.Match[str]) -> str:
            named = _NAMED.fullmatch(match[2])
            if match[1] or named is None:
                return match[0][len(match[1]) :]
            name, default = named.groups()
            if not (found := environment.get(name)) and default is None:
                missing.append(name)
            return found or default or ""

        alone = _VARIABLE.fullmatch(node.value)
        node.value = _VARIABLE.sub(value, node.value)
        if missing:
            text = f"the environment variable {missing[0]} is not set; set it, write ${{{missing[0]}:-default}}, or $${{...}} for the text"
            self.problems.append(Problem(keys, text))
        elif node.value != written:
            self._filled[id(node)] = self.written[keys] = written
            if alone and not written.quoted and not any(is_secret(str(key)) for key in keys):
                node.tag = NUMBER if scientific(node.value) else Loader("").resolve(yaml.ScalarNode, node.value, (True, False))

    @staticmethod
    def _characters(node: yaml.ScalarNode) -> None:
        if (match := _UNUSABLE.search(node.value)) is not None:
            raise _refused(f"the character {ord(match[0]):#06x} cannot be used; delete it", node)

    def _number(self, node: yaml.ScalarNode, keys: Keys) -> None:
        text = node.value
        if node.tag == TEXT and (match := _SCIENTIFIC.fullmatch(text)) is not None:
            sign, mantissa, exponent_sign, exponent = match.groups()
            mantissa = mantissa + "0" if mantissa.endswith(".") else mantissa if "." in mantissa else mantissa + ".0"
            right = f"{sign}{mantissa}e{exponent_sign or '+'}{exponent}"
            if not self.typed:
                self.problems.append(Problem(keys, f"YAML reads {text} as text; write {right} (or quote it where text is meant)"))
            node.tag, node.value = NUMBER, right
        elif node.tag == WHOLE and (len(text) > 100 or abs(self._read(node)) > LARGEST):
            self.problems.append(Problem(keys, f"is too large; a whole number is at most {LARGEST}"))
            node.value = "1"
        elif (node.tag == WHOLE and not _PLAIN_INT.fullmatch(text)) or (
            node.tag == NUMBER and not scientific(text) and not _PLAIN_NUMBER.fullmatch(text)
        ):
            read = self._read(node)
            self.problems.append(Problem(keys, f"YAML reads {text} as {read}; write {read}, or quote it where text is meant"))
            node.value = str(read)

    def _read(self, node: yaml.ScalarNode) -> int | float:
        """As YAML does: 010 is 8, and 1:30 is 90.

        Raises:
            ConstructorError: a tag before other text.
        """
        try:
            return Loader("").construct_yaml_int(node) if node.tag == WHOLE else Loader("").construct_yaml_float(node)
        except (ValueError, IndexError) as error:
            raise _refused(f"{show(node.value)} is not a number", node) from error


def _refused(text: str, node: yaml.Node) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, text, node.start_mark)


def _same(one: yaml.Node, other: yaml.Node) -> bool:
    """Whether two nodes say the same."""
    if isinstance(one, yaml.ScalarNode) or isinstance(other, yaml.ScalarNode):
        return bool(one.tag == other.tag and one.value == other.value)
    mine, others = _parts(one), _parts(other)
    return len(mine) == len(others) and all(map(_same, mine, others))


def _parts(node: yaml.Node) -> list[yaml.Node]:
    return [part for item in node.value for part in (item if isinstance(item, tuple) else (item,))]
