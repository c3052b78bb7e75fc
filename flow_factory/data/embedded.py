"""Images and videos inside a table: each is written to a file, named by its content, when it is first needed."""

import datetime
import hashlib
import secrets
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from flow_factory.data.columns import DataError, Deferred, require_file_name
from flow_factory.utils.errors import file_errors

MAGIC = {
    b"\x89PNG": "png",
    b"\xff\xd8\xff": "jpg",
    b"GIF8": "gif",
    b"II*\0": "tif",
    b"MM\0*": "tif",
    b"BM": "bmp",
    b"\x1a\x45\xdf\xa3": "mkv",
}
"""Endings of names, by first bytes: for people who look into the folder, and for nothing else."""
PARTS = {"bytes", "path"}
"""How `datasets` stores a picture, a video or a sound."""


class Store:
    """Files by content, in a folder."""

    def __init__(self, folder: Path):
        self.folder = folder.absolute()

    def name(self, content: bytes) -> str:
        """The path of a file with this content, written now where it is not there: whole or not at all.

        Raises:
            UserError: the folder cannot be written to.
        """
        digest = hashlib.sha256(content).hexdigest()
        path = self.folder / digest[:2] / f"{digest}.{_ending(content[:16])}"
        with file_errors("data.cache_dir", path, "choose another folder"):
            if not path.is_file() or path.stat().st_size != len(content):
                path.parent.mkdir(parents=True, exist_ok=True)
                beside = path.with_name(f".{digest}.{secrets.token_hex(4)}.tmp")
                beside.write_bytes(content)
                beside.replace(path)
        return str(path)


class Cell(Deferred):
    """What a row has in a column with bytes in it.

    Args:
        read: the cell's value.
        many: None where it is no list, else the list's length.
        where, column: for messages.
    """

    def __init__(self, read: Callable[[], Any], many: int | None, store: Store, where: str, column: str):
        self.read, self.store, self.where, self.column = read, store, where, column
        self.many, self.length = many is not None, 1 if many is None else many

    def __len__(self) -> int:
        return self.length

    def files(self, folder: Path) -> tuple[str, ...]:
        """Raises:
        DataError: something in it is neither bytes, nor a file's name.
        """
        value = self.read()
        return tuple(self._file(one, folder) for one in (value if self.many else [value]))

    def value(self) -> Any:
        return self.plain(self.read())

    def _file(self, one: Any, folder: Path | None) -> str:
        content, name = (one, None) if isinstance(one, bytes) else (one.get("bytes"), one.get("path")) if _is_media(one) else (None, one)
        if content is not None:
            return self.store.name(content)
        require_file_name(name, repr(self.column), "file", self.where)
        return str(Path(folder or "", str(name)))

    def plain(self, value: Any) -> Any:
        """The value with a file's name where a picture, a video or a sound stands; else as `plain`."""
        if _is_media(value):
            return None if value["bytes"] is None and value["path"] is None else self._file(value, None)
        if isinstance(value, list):
            return [self.plain(one) for one in value]
        if isinstance(value, dict):
            return {key: self.plain(one) for key, one in value.items()}
        return plain(value, self.where, self.column)


def plain(value: Any, where: str, column: str) -> Any:
    """Numbers, texts, lists and objects of Python's own: what a reward, a metric and a JSON file can take. Times become ISO texts.

    Raises:
        DataError: it cannot be one.
    """
    if value is None or isinstance(value, str | int | float | bytes):
        return value.item() if isinstance(value, np.generic) else value
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist(), where, column)
    if isinstance(value, list | tuple):
        return [plain(one, where, column) for one in value]
    if isinstance(value, Mapping):
        return {key: plain(one, where, column) for key, one in value.items()}
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, Decimal):
        return float(value)
    raise DataError(f"{where}: {column!r} has a {type(value).__name__}, which is no number, text, list or object; leave the column out")


def _is_media(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == PARTS


def _ending(head: bytes) -> str:
    if head[4:8] == b"ftyp":
        return "mp4"
    if head[:4] == b"RIFF":
        return {b"WEBP": "webp", b"AVI ": "avi", b"WAVE": "wav"}.get(head[8:12], "bin")
    return next((ending for magic, ending in MAGIC.items() if head.startswith(magic)), "bin")
