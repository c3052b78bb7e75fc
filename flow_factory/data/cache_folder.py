"""The layout of `data.cache_dir`: a folder of shards for each set of encoders, with one description for each data set. Needs no torch.

rows/FINGERPRINT/FAMILY.json             data set and model; its modification time is the time of the last use
rows/FINGERPRINT/FAMILY-WRITER.shard     and .index, see `index`
"""

import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flow_factory.data.index import RECORD, ROW, read_records
from flow_factory.utils.errors import UserError

ROWS = "rows"
OLD, OLD_ROW = re.compile(r"[0-9a-f]{2}"), re.compile(r"[0-9a-f]{64}\.safetensors|\.[0-9a-f]{64}\.[0-9a-f]{8}\.tmp")
"""Folders and files of an earlier version's rows."""
PREFIX = ["high", "low"]
AGAIN = 3600.0
"""Seconds after which the next use is recorded."""


def rows_folder(folder: Path, fingerprint: str) -> Path:
    """The folder of the rows of one set of encoders."""
    return folder / ROWS / hashlib.sha256(fingerprint.encode()).hexdigest()[:32]


class Family:
    """The shards of one data set and one set of encoders, which share a name prefix; and the time of their last use.

    Args:
        about: `dataset_dir`, `model`, `model_type`.
    """

    def __init__(self, folder: Path, about: Mapping[str, str]):
        self.folder, self.about = folder, dict(about)
        self.name = hashlib.sha256(json.dumps(self.about, sort_keys=True).encode()).hexdigest()[:12]
        self.noted: dict[str, float] = {}

    def describe(self) -> None:
        """Writes the description if there is none.

        Raises:
            OSError: from the file system.
        """
        path = self.folder / f"{self.name}.json"
        if not path.exists():
            beside = path.with_name(f".{self.name}.{secrets.token_hex(4)}.tmp")
            beside.write_text(json.dumps(self.about | {"created": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())}))
            beside.replace(path)

    def used(self, shard: str) -> None:
        """Records that a shard of any family was used, at most once an hour."""
        name = shard.partition("-")[0]
        now = time.monotonic()
        if now - self.noted.get(name, -AGAIN) >= AGAIN:
            self.noted[name] = now
            with suppress(OSError):  # files of another user, or a read-only disk
                os.utime(self.folder / f"{name}.json")


@dataclass(frozen=True)
class CachedRows:
    """The cached rows of one data set and one set of encoders."""

    folder: Path
    family: str
    about: dict[str, str]
    rows: int
    size: int
    """Bytes on the disk."""
    used: float
    """Time of the last use, in seconds since 1970."""

    def remove(self) -> None:
        """Removes the files, indexes first, so that a reader finds a whole row or none.

        Raises:
            OSError: from the file system.
        """
        for suffix in (".index", ".shard", ".json", ".tmp"):
            for path in _files(self.folder, self.family, suffix):
                path.unlink(missing_ok=True)
        with suppress(OSError):  # the folder has rows of other data sets
            self.folder.rmdir()


def cached_rows(folder: Path) -> list[CachedRows]:
    """The contents of a cache, ordered by folder and family.

    Raises:
        OSError: the cache cannot be read.
    """
    rows = folder / ROWS
    return [_cached_rows(place, family) for place in sorted(rows.iterdir() if rows.is_dir() else ()) for family in _families(place)]


def _families(place: Path) -> list[str]:
    return sorted({re.split(r"[-.]", path.name.lstrip("."))[0] for path in place.iterdir()})


def _files(place: Path, family: str, suffix: str) -> Iterator[Path]:
    return (path for path in sorted(place.iterdir()) if path.suffix == suffix and re.match(rf"\.?{re.escape(family)}[-.]", path.name))


def _cached_rows(place: Path, family: str) -> CachedRows:
    note, keys = place / f"{family}.json", [np.empty(0, RECORD)[PREFIX]]
    files = [*_files(place, family, ".shard"), *_files(place, family, ".index")]
    for path in files:
        if path.suffix == ".index":
            with suppress(FileNotFoundError):  # removed meanwhile
                records, _ = read_records(path)
                keys.append(records[records["kind"] == ROW][PREFIX])
    try:
        about = json.loads(note.read_text())
    except (FileNotFoundError, ValueError):
        about = None
    about = {str(k): str(v) for k, v in about.items()} if isinstance(about, dict) else {}
    used = [_stat(path).st_mtime for path in ([note] if note.exists() else files)]
    return CachedRows(place, family, about, len(np.unique(np.concatenate(keys))), size_on_disk(files), max(used, default=0.0))


def _stat(path: Path) -> os.stat_result:
    """The file's `stat`; all zeros if the file was removed meanwhile."""
    try:
        return path.stat()
    except FileNotFoundError:
        return os.stat_result([0] * 19)


def size_on_disk(files: Iterable[Path]) -> int:
    """Bytes that files take on disk; less than their length if they are sparse."""
    return sum(_stat(path).st_blocks * 512 for path in files)


def others(folder: Path) -> dict[str, int]:
    """Name -> bytes on disk of everything else in the cache: converted data sets of other formats, and images out of them."""
    names = [path for path in sorted(folder.iterdir() if folder.is_dir() else ()) if path.name != ROWS and not OLD.fullmatch(path.name)]
    return {path.name: size_on_disk([path, *path.rglob("*")] if path.is_dir() else [path]) for path in names}


def old_files(folder: Path) -> list[Path]:
    """The files of an earlier version's rows: one file a row, in folders with names of two letters."""
    folders = [path for path in (folder.iterdir() if folder.is_dir() else ()) if OLD.fullmatch(path.name) and path.is_dir()]
    return sorted(path for place in folders for path in place.iterdir() if OLD_ROW.fullmatch(path.name))


def remove_old(files: Iterable[Path]) -> None:
    """Removes an earlier version's rows, and their folders if they are then empty.

    Raises:
        OSError: from the file system.
    """
    files = list(files)
    for path in files:
        path.unlink(missing_ok=True)
    for place in {path.parent for path in files}:
        with suppress(OSError):  # the folder is not empty
            place.rmdir()


def has_old(folder: Path) -> bool:
    """Whether there are folders of an earlier version's rows."""
    return any(OLD.fullmatch(path.name) for path in (folder.iterdir() if folder.is_dir() else ()))


def free_space(folder: Path) -> int:
    """Free bytes on the disk of a folder, which need not exist yet."""
    whole = folder.expanduser().absolute()
    return shutil.disk_usage(next(p for p in (whole, *whole.parents) if p.is_dir())).free


def require_space(folder: Path, size: int) -> None:
    """Checks that the disk of a cache has `size` bytes free.

    Raises:
        UserError: it has less.
    """
    free = free_space(folder)
    if free < size:
        raise UserError(
            f"data.cache_dir: {folder}: the rows to encode take {size / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free: "
            f"{(size - free) / 1e9:.1f} GB are missing; choose another folder, or see what 'ff-data cache' can remove"
        )
