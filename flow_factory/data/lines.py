"""One line of a `.jsonl` data set: from JSON to a row. Needs nothing but the standard library."""

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flow_factory.errors import UserError
from flow_factory.types import Row

DEEPEST = 64
"""Levels of lists and objects in a row: what copies and writes it goes down as deep."""
EXAMPLE = 'lines such as {"prompt": "a red cube"}'


class DataError(UserError):
    """A data set that cannot be read; the message names the file, the line and what would be right."""


def row_of(row_id: int, line: str, where: str, folders: Mapping[str, Path]) -> Row:
    """The row of a line of JSON.

    Args:
        where: `file:line`, for messages.
        folders: where relative names of files of each kind ("image", "video") start.

    Raises:
        DataError: it is not as `reader.read_rows` describes it.
    """
    columns = _parse(line, where)
    if not isinstance(columns, dict):
        raise DataError(f"{where}: {_kind(columns)} where an object belongs, {EXAMPLE}")
    if "prompt" not in columns:
        close = difflib.get_close_matches("prompt", [key.lower() for key in columns], n=1)
        meant = next((f"; is it {key!r}?" for key in columns if key.lower() in close), "")
        raise DataError(f"{where}: no 'prompt' among the columns {', '.join(columns) or '(none)'}{meant}")
    prompt, negative = columns.pop("prompt"), columns.pop("negative_prompt", None)
    if not isinstance(prompt, str) or not prompt.strip():
        raise DataError(f"{where}: 'prompt' must be a text with something in it, not {_kind(prompt)}")
    if negative is not None and not isinstance(negative, str):
        raise DataError(f"{where}: 'negative_prompt' must be a text or null, not {_kind(negative)}")
    if "\0" in prompt + (negative or ""):
        raise DataError(f"{where}: the prompt has a NUL character (\\u0000); delete it")
    images, videos = (_files(columns, kind, folder, where) for kind, folder in folders.items())
    return Row(row_id, prompt, negative, columns, images, videos, where)


def _parse(line: str, where: str) -> Any:
    """A line as JSON. NaN and Infinity, which Python writes, are taken as it means them: they can stand in columns for rewards only."""
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
    except ValueError as error:  # those of the functions below, and Python's own limit
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
    """As `json.loads` has it; that makes a decoder for every line, and has the messages."""
    try:
        value, end = _DECODER.raw_decode(line)
        if end == len(line):
            return value
    except json.JSONDecodeError:
        pass
    return json.loads(line, object_pairs_hook=_object)


def _deeper(value: Any, most: int) -> bool:
    """Whether lists and objects stand in one another more than `most` times."""
    level = [value]
    for _ in range(most + 1):
        level = [inner for v in level if isinstance(v, dict | list) for inner in (v.values() if isinstance(v, dict) else v)]
    return bool(level)


def _require_whole(value: Any) -> None:
    """Raises:
    ValueError: a text with half of a character, which no UTF-8 can hold: what a cut through an emoji leaves.
    """
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise ValueError(f"{half} is half of a character (an emoji that was cut?); cut texts between characters") from error


def _files(columns: dict[str, Any], kind: str, folder: Path, where: str) -> tuple[str, ...]:
    """Takes `image` and `images` (or `video` and `videos`) out of the columns; null is as if they were not there."""
    one, several = columns.pop(kind, None), columns.pop(f"{kind}s", None)
    if one is not None and several is not None:
        raise DataError(f"{where}: both '{kind}' and '{kind}s'; keep '{kind}' for one file, '{kind}s' for a list of them")
    if isinstance(one, list):
        raise DataError(f"{where}: '{kind}' must be one file's name; a list of them is '{kind}s'")
    if several is not None and not isinstance(several, list):
        raise DataError(f"{where}: '{kind}s' must be a list of file names, not {_kind(several)}; one file's name is '{kind}'")
    names = several or [] if one is None else [one]
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise DataError(f"{where}: '{kind}{'s' if one is None else ''}' names files, and {_kind(name)} is no file's name")
        if "\0" in name:
            raise DataError(f"{where}: {json.dumps(name)} is no file's name: it has a NUL character")
        if "://" in name:
            raise DataError(f"{where}: {name} is an address; {kind}s are read from disk, so download it and name the file")
    return tuple(str(folder / name) for name in names)


def _kind(value: Any) -> str:
    """A JSON value as a reader of the file would call it."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    names = {dict: "an object", list: "a list", str: "an empty text" if value == "" else "a text", int: "a number", float: "a number"}
    return names[type(value)] + (
        "" if isinstance(value, dict | list) or value == "" else f" ({json.dumps(value, ensure_ascii=False)[:40]})"
    )
