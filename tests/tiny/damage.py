"""Damage to files, as hypothesis draws it: to what a YAML or JSON text says, to its lines, to the bytes of any file."""

import json
import re
import struct
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import yaml
from hypothesis import strategies as st

Draw = Callable[[st.SearchStrategy[Any]], Any]


@dataclass
class Format:
    """A kind of file."""

    damaged: st.SearchStrategy[Any]
    read: Callable[[Any], Any]
    """Reads it as the program does; what it asserts is said where it is defined."""
    lines: bool = False
    """Whether a message has one line for each thing that is wrong."""


HOSTILE: list[Any] = [
    None, True, False, 0, -1, 1, 7, 2**31, 2**63, -(2**63) - 1, 2**64, 10**40, 0.5, -0.0, 5e-324, 1e-300, 1e300, -1e300,
    "", " ", "a", "auto", "all", "cpu", "-", "no", "1e-4", "010", "nan", "${HOME}", "${NOT_THERE}", "~", "~nobody/x", "/", "..",
    "../../x", "/dev/null", "/proc/self/mem", "a" * 300, "a/" * 3000, "a\nb", "a\tb", "\0", "\x1b[31m", "\x85", "\u2028", "\ufeff",
    "\ud83d", "\U0001f600", "$\\frac$", "%s {x} \\", "file:x.png", "http://127.0.0.1:1/x.png", "os:getcwd",
    "flow_factory.utils.errors:UserError", "nowhere:Nothing", [], {}, [[]], [None], [0], [1, 2], [""], ["a", "a"], [1e9, -1e9], [2**70],
    {"a": 1}, {"": ""}, [{}], {"name": ["x"]}, [0.0] * 1000,
]  # fmt: skip
"""Values that some key does not expect."""

DEEP = 3000
JSON_TEXTS = {
    "deep": "[" * DEEP + "]" * DEEP, "deeper": '{"a":' * DEEP + "1" + "}" * DEEP, "digits": "9" * 5000, "wide": "[" + "0," * 20000 + "0]",
    "overflow": "1e999", "nan": "NaN", "infinite": "-Infinity", "open": "[{", "surrogate": r'"\ud83d"', "nul": r'"\u0000"',
    "pair": '{"a": 1, "a": 2}',
}  # fmt: skip
YAML_TEXTS = {
    "deep": "[" * DEEP + "]" * DEEP, "deeper": "{a: " * 500 + "1" + "}" * 500, "digits": "9" * 5000, "wide": "[" + "0, " * 3000 + "0]",
    "bomb": "[&a0 [x, x], " + ", ".join(f"&a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)) + "]",
    "merged": "{<<: [&b0 {x: 1}, " + ", ".join(f"&b{n} {{<<: [{', '.join([f'*b{n - 1}'] * 9)}]}}" for n in range(1, 9)) + "]}",
    "itself": "&me [*me]", "its_key": "&me {a: *me}", "nobody": "*nobody", "merge": "{<<: 3}", "merge_list": "{<<: [1]}", "key": "{[a]: 1}",
    "number_key": "{1: a, 1.5: b, null: c, true: d}", "code": "!!python/object/apply:os.getcwd []", "own_tag": "!mine x",
    "no_int": "!!int ''", "no_int_2": "!!int x", "no_int_3": "!!int [1]",
    "no_float": "!!float ''", "no_float_2": "!!float x", "no_bool": "!!bool 3", "no_null": "!!null x",
    "no_time": "!!timestamp x", "time": "!!timestamp 2001-01-01", "no_month": "!!timestamp 2001-99-01", "date": "2001-01-01",
    "bytes": "!!binary aGk=", "no_bytes": "!!binary '\u00e4'", "set": "!!set {a, b}", "no_set": "!!set [a]", "ordered": "!!omap [a: 1]",
    "no_pairs": "!!pairs [1]", "text": "!!str [a]", "sequence": "!!seq 3", "mapping": "!!map 3",
    "octal": "010", "octal_2": "0o17", "binary": "0b2", "hex": "0x", "sixty": "1:30",
    "underscore": "1_000", "lines": '"a\\nb"', "nul": '"\\0"', "surrogate": '"\\ud83d"', "far": '"\\U7fffffff"',
    "nan": ".nan", "infinite": "-.inf", "overflow": "1.0e+999", "equals": "=", "open": "[",
    "tab": "\t", "document": "\n---\n", "directive": "\n%YAML 9.9\n---\n",
}  # fmt: skip
"""By names; in a tree `@@name@@` stands for the text, which no dumper would write."""


def to_json(tree: Any) -> bytes:
    return _put(json.dumps(tree), JSON_TEXTS).encode(errors="surrogatepass")


def to_yaml(tree: Any) -> bytes:
    return _put(yaml.safe_dump(tree, sort_keys=False, width=10**6), YAML_TEXTS).encode(errors="surrogatepass")


def to_rows(tree: Any) -> bytes:
    """A line of JSON for each entry of the list."""
    return b"\n".join(to_json(row) for row in (tree if isinstance(tree, list) else [tree]))


def _put(text: str, texts: Mapping[str, str]) -> str:
    return re.sub(r"""(["']?)@@(\w+)@@\1""", lambda m: texts.get(m[2], m[0]), text.replace("@@twice@@", ""))


@st.composite
def tree_damage(draw: Draw, tree: Any, texts: Mapping[str, str] = JSON_TEXTS) -> Any:
    """The tree of mappings, lists and values with one to three changes: entries go, come twice, change name, place, type or size."""
    holder = [deepcopy(tree)]
    for _ in range(draw(st.integers(1, 3))):
        found = list(_spots(holder))
        inside, key = draw(st.sampled_from(found))
        value = deepcopy(inside[key])
        match draw(
            st.sampled_from(("delete", "twice", "rename", "replace", "replace", "text", "text", "text", "swap", "wrap", "touch", "touch"))
        ):
            case "delete":
                del inside[key]
            case "twice" if isinstance(inside, dict):
                inside[f"{key}@@twice@@"] = deepcopy(draw(st.sampled_from([value, *HOSTILE])))
            case "twice":
                inside.insert(key, value)
            case "rename" if isinstance(inside, dict):
                near = [key[:-1], key[1:], key.upper(), f"{key} ", f"{key}s", str(draw(st.sampled_from(found))[1])]
                inside[draw(st.sampled_from([*near, *(h for h in HOSTILE if isinstance(h, str))]))] = inside.pop(key)
            case "text":
                inside[key] = f"@@{draw(st.sampled_from(list(texts)))}@@"
            case "swap":
                other, place = draw(st.sampled_from(found))
                inside[key] = deepcopy(other[place])
            case "wrap":
                inside[key] = draw(st.sampled_from([[value], {"a": value}, [value, 1], str(value)]))
            case "touch" if isinstance(value, int | float):
                inside[key] = draw(st.sampled_from([-value, value + 1, value - 1, value + 0.5, value * 1e30, str(value), float(value)]))
            case "touch" if isinstance(value, str):
                at, piece = draw(st.integers(0, len(value))), draw(st.sampled_from([h for h in HOSTILE if isinstance(h, str)]))
                inside[key] = value[:at] + piece + value[at + draw(st.integers(0, 2)) :]
            case _:
                inside[key] = deepcopy(draw(st.sampled_from(HOSTILE)))
        if not holder:
            break
    return holder[0] if holder else None


def _spots(holder: Any) -> Any:
    """(mapping or list, key) of everything inside."""
    for key, value in holder.items() if isinstance(holder, dict) else enumerate(holder):
        yield holder, key
        if isinstance(value, dict | list):
            yield from _spots(value)


@st.composite
def byte_damage(draw: Draw, data: bytes) -> bytes:
    """The bytes with one to three changes: bits flip, pieces go, come, or come from elsewhere in the file."""
    for _ in range(draw(st.integers(1, 3))):
        at, length = draw(st.integers(0, len(data))), draw(st.sampled_from((1, 1, 2, 8, 100)))
        match draw(st.sampled_from(("flip", "flip", "cut", "drop", "insert", "splice"))):
            case "flip" if at < len(data):
                data = data[:at] + bytes([data[at] ^ 1 << draw(st.integers(0, 7))]) + data[at + 1 :]
            case "cut":
                data = data[:at]
            case "drop":
                data = data[:at] + data[at + length :]
            case "insert":
                data = data[:at] + draw(st.binary(min_size=1, max_size=8)) + data[at:]
            case _:
                start = draw(st.integers(0, len(data)))
                data = data[:at] + data[start : start + length] + data[at:]
    return data


@st.composite
def line_damage(draw: Draw, data: bytes) -> bytes:
    """The text with lines that go, come twice, stand elsewhere or further in."""
    lines = data.splitlines(keepends=True)
    for _ in range(draw(st.integers(1, 3))):
        at, to = draw(st.integers(0, len(lines) - 1)), draw(st.integers(0, len(lines) - 1))
        match draw(st.sampled_from(("delete", "copy", "indent", "outdent"))):
            case "delete" if len(lines) > 1:
                del lines[at]
            case "copy":
                lines.insert(to, lines[at])
            case "indent":
                lines[at] = draw(st.sampled_from((b" ", b"  ", b"\t", b"- ", b"# ", b"? ", b": ", b"&a ", b"\xff"))) + lines[at]
            case _:
                lines[at] = lines[at].lstrip()
    return b"".join(lines)


def text_damage(tree: Any, dump: Callable[[Any], bytes], texts: Mapping[str, str] = JSON_TEXTS) -> st.SearchStrategy[bytes]:
    """Damaged bytes of what `dump` writes: of the tree mostly, of its lines, of any byte."""
    whole, trees = dump(tree), tree_damage(tree, texts).map(dump)
    return st.one_of(trees, trees, line_damage(whole), byte_damage(whole))


def safetensors_damage(data: bytes) -> st.SearchStrategy[bytes]:
    """Of the header as JSON (with its right length before it), of its length, of any byte of it, of the file."""
    (length,) = struct.unpack("<Q", data[:8])
    header, numbers = data[8 : 8 + length], data[8 + length :]
    headers = tree_damage(json.loads(header)).map(to_json)
    lengths = st.sampled_from([0, 1, length - 1, length + 1, length + 8, len(data), 100_000_001, 2**31, 2**63, 2**64 - 1])
    return st.one_of(
        st.one_of(headers, headers, byte_damage(header)).map(lambda h: struct.pack("<Q", len(h)) + h + numbers),
        lengths.map(lambda n: struct.pack("<Q", n) + data[8:]),
        byte_damage(data),
    )
