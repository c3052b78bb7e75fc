"""Messages about wrong values: what is wrong, and what would be right."""

import re
from collections.abc import Collection, Mapping

import yaml
from pydantic_core import ErrorDetails

from flow_factory.config.base import show
from flow_factory.utils.registry import nearest

_WANTS = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list, e.g. [1, 2]",
    "model_type": "a mapping of keys to values",
    "model_attributes_type": "a mapping of keys to values",
    "dict_type": "a mapping of keys to values",
}


def explain(error: ErrorDetails) -> str:
    """The message for one of pydantic's errors."""
    kind, value = error["type"], error["input"]
    if kind == "missing":
        return "is required"
    if kind == "value_error":
        return str(error["ctx"]["error"])
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", error["ctx"]["expected"]) or [error["ctx"]["expected"].lower()]
        return f"wants {'one of ' * (len(choices) > 1)}{', '.join(choices)}; got {show(value)}.{nearest(str(value), choices)}"
    if kind in _WANTS:
        return f"wants {_WANTS[kind]}, got {show(value)}{_rewritten(kind, value)}"
    return f"{error['msg'].replace('Input should be', 'must be')}, got {show(value)}"


def unknown_key(key: str, known: Collection[str], homes: Mapping[str, str]) -> str:
    """The message about a key that a section does not have.

    Args:
        known: what it has.
        homes: key -> section that has it, for keys in the wrong place.
    """
    if key in homes:
        return f"unknown key here; it belongs in {homes[key]}"
    near = nearest(key, list(known))
    return f"unknown key.{near}" if near else f"unknown key. Known: {', '.join(sorted(known))}"


def _rewritten(kind: str, value: object) -> str:
    """A hint with the correct spelling of the value, if it can be guessed."""
    if isinstance(value, str) and kind.startswith("model") and ":" in value:
        return "; a space follows the colon of a key"
    if isinstance(value, str):
        meant = yaml.safe_load(value) if re.fullmatch(r"[\w.+-]+", value) else None
        fits: tuple[type, ...] = {"int_type": (int,), "float_type": (int, float), "bool_type": (bool,)}.get(kind, ())
        if isinstance(meant, fits) and (kind == "bool_type" or not isinstance(meant, bool)):
            return f"; write {show(meant)} without quotes"
    if kind == "int_type" and isinstance(value, float) and value.is_integer():
        return f"; write {int(value)}"
    if kind == "bool_type" and value in (0, 1):
        return f"; write {show(bool(value))}"
    if kind == "string_type" and isinstance(value, (int, float)):
        return f'; write "{value}"'
    return ""
