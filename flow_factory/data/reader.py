"""Reads a data set: `train` and `test`, each `.jsonl` or `.txt`. Needs nothing but the standard library, so a check takes a moment."""

import difflib
import json
import logging
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from flow_factory.errors import UserError
from flow_factory.types import Row

logger = logging.getLogger(__name__)


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
            are there is for `media.check_rows` to say.

    Raises:
        DataError: no such folder or file, both files, an empty file, or a line that is not as described.
    """
    folder = Path(dataset_dir).expanduser()
    path = _file_of(folder, split)
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
        logger.warning("%s: %d of %d rows repeat an earlier line; each stays a row of its own", path, len(rows) - len(seen), len(rows))
    return rows


_EXAMPLES = {".jsonl": 'lines such as {"prompt": "a red cube"}', ".txt": "a prompt a line"}


def _file_of(folder: Path, split: str) -> Path:
    if not folder.is_dir():
        nearest = next(p for p in (folder, *folder.absolute().parents) if p.is_dir())
        raise DataError(
            f"no data set folder {folder}; {nearest} has {listing(nearest)}. data.dataset_dir names a folder with train.jsonl or .txt"
        )
    there = [path for suffix in _EXAMPLES if (path := folder / f"{split}{suffix}").is_file()]
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
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                hint = " (it looks like UTF-16)" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
                raise DataError(
                    f"{path}:{number}: not UTF-8 at byte {error.start + 1} of the line{hint}; save the file as UTF-8"
                ) from error
            if text:
                yield number, text


def _parse_object(row_id: int, line: str, where: str, folders: dict[str, Path]) -> Row:
    try:
        columns = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON at column {error.colno}: {error.msg}; one object a line, {_EXAMPLES['.jsonl']}") from error
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
    images, videos = (_files(columns, kind, folder, where) for kind, folder in folders.items())
    return Row(row_id, prompt, negative, columns, images, videos, where)


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
