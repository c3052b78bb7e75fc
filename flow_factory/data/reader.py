"""Reads a data set: `train` and `test`, each `.jsonl` or `.txt`. Needs nothing but the standard library, so a check takes a moment."""

import difflib
import json
import logging
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from flow_factory.errors import UserError, file_errors
from flow_factory.files import require_readable
from flow_factory.types import Row

logger = logging.getLogger(__name__)

LONGEST = 1 << 24
"""Bytes of a line: a data set that is one JSON document is no data set of one row."""
DEEPEST = 64
"""Levels of lists and objects in a row: what copies and writes it goes down as deep."""
READABLE = "the user that runs this must be able to read it"


class DataError(UserError):
    """A data set that cannot be read; the message names the file, the line and what would be right."""


def read_rows(
    dataset_dir: Path,
    split: Literal["train", "test"],
    max_size: int | None = None,
    image_dir: str | Path | None = None,
    video_dir: str | Path | None = None,
) -> list[Row]:
    """The rows of `{split}.jsonl` or `{split}.txt`, numbered from 0; reading stops after `max_size` of them.

    A line of the .txt is a prompt. A line of the .jsonl is an object with `prompt`, maybe `negative_prompt`, `image` (a file name) or
    `images` (a list of them), `video` or `videos`, and any other columns, which stay with the row. Blank lines are skipped. Equal lines
    stay rows of their own, since a group belongs to a row, not to a text.

    Args:
        image_dir, video_dir: where relative file names start; by default images/ and videos/ in the data set's folder. Whether the files
            are there is for `inspection` to say.

    Raises:
        DataError: no such folder or file, both files, an empty file, or a line that is not as described.
    """
    folder = Path(dataset_dir)
    with file_errors("data.dataset_dir", folder, READABLE, DataError):
        path = _file_of(folder, split)
    require_readable(path, "data.dataset_dir", READABLE, DataError)
    folders = {"image": Path(image_dir or folder / "images"), "video": Path(video_dir or folder / "videos")}
    rows: list[Row] = []
    seen: set[str] = set()
    for number, line in islice(_lines(path), max_size):
        where = f"{path}:{number}"
        rows.append(_parse_object(len(rows), line, where, folders) if path.suffix == ".jsonl" else Row(len(rows), line, source=where))
        seen.add(line)
    if not rows:
        raise DataError(f"{path}: no line with a prompt in it; write {_EXAMPLES[path.suffix]}")
    if len(seen) < len(rows):
        logger.info("%s: %d of %d rows repeat an earlier line; each stays a row of its own", path, len(rows) - len(seen), len(rows))
    return rows


_EXAMPLES = {".jsonl": 'lines such as {"prompt": "a red cube"}', ".txt": "a prompt a line"}


def _file_of(folder: Path, split: str) -> Path:
    if not folder.is_dir():
        nearest = next(p for p in (folder, *folder.absolute().parents) if p.is_dir())
        what = f"no data set folder {folder}; {nearest} has {listing(nearest)}" if not os.path.lexists(folder) else f"{folder} is no folder"
        raise DataError(f"{what}. data.dataset_dir names a folder with train.jsonl or .txt")
    there = [path for suffix in _EXAMPLES if os.path.lexists(path := folder / f"{split}{suffix}")]
    if len(there) == 2:
        raise DataError(f"{folder} has both {split}.jsonl and {split}.txt: keep the one that is meant")
    if not there:
        wanted = " or ".join(f"{split}{suffix} ({example})" for suffix, example in _EXAMPLES.items())
        raise DataError(f"no {split} split in {folder}, which has {listing(folder)}; it needs {wanted}")
    return there[0]


def listing(folder: Path, most: int = 12) -> str:
    """The first names in a folder, for messages."""
    names = sorted(p.name + "/" * p.is_dir() for p in folder.iterdir() if not p.name.startswith("."))
    return ", ".join(names[:most]) + (f", ... ({len(names)} in all)" if len(names) > most else "") or "nothing in it"


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, stripped text) of every line that is not blank."""
    with file_errors("data.dataset_dir", path, READABLE, DataError), path.open("rb") as file:
        for number, raw in enumerate(iter(lambda: file.readline(LONGEST + 1), b""), start=1):
            if len(raw) > LONGEST:
                raise DataError(
                    f"{path}:{number}: a line of more than {LONGEST >> 20} MB; a row is a line, and a file of rows no JSON list"
                )
            try:
                text = raw.decode("utf-8-sig").strip()  # files that were joined have marks of byte order inside, too
            except UnicodeDecodeError as error:
                hint = " (it looks like UTF-16)" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
                raise DataError(
                    f"{path}:{number}: not UTF-8 at byte {error.start + 1} of the line{hint}; save the file as UTF-8"
                ) from error
            if "\0" in text:
                raise DataError(f"{path}:{number}: a NUL character (it looks like UTF-16); save the file as UTF-8")
            if text:
                yield number, text


def _parse_object(row_id: int, line: str, where: str, folders: dict[str, Path]) -> Row:
    columns = _parse(line, where)
    if not isinstance(columns, dict):
        raise DataError(f"{where}: {_kind(columns)} where an object belongs, {_EXAMPLES['.jsonl']}")
    if "prompt" not in columns:
        close = difflib.get_close_matches("prompt", [key.lower() for key in columns], n=1)
        meant = next((f"; is it {key!r}?" for key in columns if key.lower() in close), "")
        raise DataError(f"{where}: no 'prompt' among the columns {', '.join(columns) or '(none)'}{meant}")
    prompt, negative = columns.pop("prompt"), columns.pop("negative_prompt", None)
    if not isinstance(prompt, str) or not prompt.strip():
        raise DataError(f"{where}: 'prompt' must be a text with something in it, not {_kind(prompt)}")
    if not isinstance(negative, str | None):
        raise DataError(f"{where}: 'negative_prompt' must be a text or null, not {_kind(negative)}")
    if "\0" in prompt + (negative or ""):
        raise DataError(f"{where}: the prompt has a NUL character (\\u0000); delete it")
    images, videos = (_files(columns, kind, folder, where) for kind, folder in folders.items())
    return Row(row_id, prompt, negative, columns, images, videos, where)


def _parse(line: str, where: str) -> Any:
    """A line as JSON. NaN and Infinity, which Python writes, are taken as it means them: they can stand in columns for rewards only."""
    try:
        value = json.loads(line, object_pairs_hook=_object)
        if _deeper(value, DEEPEST):
            raise RecursionError
        if "\\u" in line:
            _require_whole(value)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON at column {error.colno}: {error.msg}; one object a line, {_EXAMPLES['.jsonl']}") from error
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
