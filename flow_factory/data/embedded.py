"""Images and videos inside a table: each is written to a file, named by its content hash, when it is first needed."""

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
"""File name extensions by first bytes. They help people who look into the folder; no code depends on them."""
PARTS = {"bytes", "path"}
"""The keys with which `datasets` stores an image, a video or audio."""


class Store:
    """A folder of files that are named by the hash of their content."""

    def __init__(self, folder: Path):
        self.folder = folder.absolute()

    def name(self, content: bytes) -> str:
        """The path of the file with this content; it is written atomically if it does not exist.

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
    """A row's value in a column that contains bytes.

    Args:
        read: returns the cell's value.
        many: the length if the value is a list, else None.
        where, column: for messages.
    """

    def __init__(self, read: Callable[[], Any], many: int | None, store: Store, where: str, column: str):
        self.read, self.store, self.where, self.column = read, store, where, column
        self.many, self.length = many is not None, 1 if many is None else many

    def __len__(self) -> int:
        return self.length

    def files(self, folder: Path) -> tuple[str, ...]:
        """Raises:
        DataError: an entry is neither bytes nor a file name.
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
        """The value as `plain`, where each image, video or audio is replaced by a file name."""
        if _is_media(value):
            return None if value["bytes"] is None and value["path"] is None else self._file(value, None)
        if isinstance(value, list):
            return [self.plain(one) for one in value]
        if isinstance(value, dict):
            return {key: self.plain(one) for key, one in value.items()}
        return plain(value, self.where, self.column)


def plain(value: Any, where: str, column: str) -> Any:
    """The value as plain Python numbers, strings, lists and dicts, as rewards, metrics and JSON need them. Times become ISO strings.

    Raises:
        DataError: the value has another type.
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
    raise DataError(f"{where}: {column!r} has a {type(value).__name__}, which is not a number, text, list or object; remove the column")


def _is_media(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == PARTS


def _ending(head: bytes) -> str:
    if head[4:8] == b"ftyp":
        return "mp4"
    if head[:4] == b"RIFF":
        return {b"WEBP": "webp", b"AVI ": "avi", b"WAVE": "wav"}.get(head[8:12], "bin")
    return next((ending for magic, ending in MAGIC.items() if head.startswith(magic)), "bin")
