"""One line of a `.jsonl` data set: from JSON to a row. Needs nothing but the standard library."""

import json
from dataclasses import replace
from typing import Any

from flow_factory.data.columns import EXAMPLE, DataError, Naming, kind_of
from flow_factory.data.v2 import columns_of
from flow_factory.types import Row

DEEPEST = 64
"""The deepest nesting of lists and objects in a row, since functions that copy and write it are recursive."""


def row_of(row_id: int, line: str, where: str, naming: Naming) -> Row:
    """The row of a line of JSON.

    Args:
        where: `file:line`, for messages.

    Raises:
        DataError: the line does not have the format that `reader.read_rows` describes.
    """
    columns = _parse(line, where)
    if not isinstance(columns, dict):
        raise DataError(f"{where}: {kind_of(columns)} where an object belongs, {EXAMPLE}")
    if "schema_version" not in columns:
        return naming.row(row_id, columns, where)
    shows, columns = columns_of(columns, where, naming.root)
    return replace(naming.row(row_id, columns, where), shows=shows)


def _parse(line: str, where: str) -> Any:
    """Parses a line of JSON. NaN and Infinity are accepted as Python writes them; only columns for rewards can have them."""
    try:
        value = _value(line)
        if line.count("[") + line.count("{") > DEEPEST and _deeper(value, DEEPEST):
            raise RecursionError
        if "\\ud" in line or "\\uD" in line:
            _require_whole(value)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON at column {error.colno}: {error.msg}; one object a line, {EXAMPLE}") from error
    except RecursionError as error:
        raise DataError(f"{where}: lists and objects are nested more than {DEEPEST} deep; make the row flat") from error
    except ValueError as error:  # from the functions below, or Python's limit on the digits of a number
        raise DataError(f"{where}: {'a number has more than 4,300 digits' if 'digits' in str(error) else error}") from error
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    columns = dict(pairs)
    if len(columns) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(n for n in names if names.count(n) > 1)!r} is written twice; keep one")
    return columns


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _value(line: str) -> Any:
    """As `json.loads`, which builds a decoder for each line; it is called for its error messages only."""
    try:
        value, end = _DECODER.raw_decode(line)
        if end == len(line):
            return value
    except json.JSONDecodeError:
        pass
    return json.loads(line, object_pairs_hook=_object)


def _deeper(value: Any, most: int) -> bool:
    """Whether lists and objects are nested more than `most` levels deep."""
    level = [value]
    for _ in range(most + 1):
        level = [inner for v in level if isinstance(v, dict | list) for inner in (v.values() if isinstance(v, dict) else v)]
    return bool(level)


def _require_whole(value: Any) -> None:
    """Raises:
    ValueError: a text contains half of a surrogate pair, which UTF-8 cannot encode (an emoji was cut in two).
    """
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise ValueError(f"{half} is half of a character (an emoji that was cut?); cut texts between characters") from error
