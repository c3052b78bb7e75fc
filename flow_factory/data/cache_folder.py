"""What lies in `data.cache_dir`: folders of shards by what encoded them, and in each a description by data set. Needs no torch.

rows/FINGERPRINT/FAMILY.json             data set and model; its time of change is that of the last use
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
"""Seconds after which a use is noted again."""


def place_of(folder: Path, fingerprint: str) -> Path:
    """Where the rows of one set of encoders are."""
    return folder / ROWS / hashlib.sha256(fingerprint.encode()).hexdigest()[:32]


class Family:
    """The shards of one data set and one set of encoders, by how their names begin; and the note of their last use.

    Args:
        about: `dataset_dir`, `model`, `model_type`.
    """

    def __init__(self, folder: Path, about: Mapping[str, str]):
        self.folder, self.about = folder, dict(about)
        self.name = hashlib.sha256(json.dumps(self.about, sort_keys=True).encode()).hexdigest()[:12]
        self.noted: dict[str, float] = {}

    def describe(self) -> None:
        """Writes what it is, where that is not said yet.

        Raises:
            OSError: the file system refuses.
        """
        path = self.folder / f"{self.name}.json"
        if not path.exists():
            beside = path.with_name(f".{self.name}.{secrets.token_hex(4)}.tmp")
            beside.write_text(json.dumps(self.about | {"created": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())}))
            beside.replace(path)

    def used(self, shard: str) -> None:
        """Notes the use of a shard, of this family or another, once an hour."""
        name = shard.partition("-")[0]
        now = time.monotonic()
        if now - self.noted.get(name, -AGAIN) >= AGAIN:
            self.noted[name] = now
            with suppress(OSError):  # others' files, or a disk that is only read
                os.utime(self.folder / f"{name}.json")


@dataclass(frozen=True)
class Stock:
    """What is there of one data set and one set of encoders."""

    folder: Path
    family: str
    about: dict[str, str]
    rows: int
    size: int
    """Bytes on the disk."""
    used: float
    """When last, in seconds since 1970."""

    def remove(self) -> None:
        """Its files, indexes first: who reads then finds a row or finds none.

        Raises:
            OSError: the file system refuses.
        """
        for suffix in (".index", ".shard", ".json", ".tmp"):
            for path in _files(self.folder, self.family, suffix):
                path.unlink(missing_ok=True)
        with suppress(OSError):  # others' rows are there
            self.folder.rmdir()


def stocks(folder: Path) -> list[Stock]:
    """What a cache has, by folder and family.

    Raises:
        OSError: it may not be read.
    """
    above = folder / ROWS
    return [_stock(place, family) for place in sorted(above.iterdir() if above.is_dir() else ()) for family in _families(place)]


def _families(place: Path) -> list[str]:
    return sorted({re.split(r"[-.]", path.name.lstrip("."))[0] for path in place.iterdir()})


def _files(place: Path, family: str, suffix: str) -> Iterator[Path]:
    return (path for path in sorted(place.iterdir()) if path.suffix == suffix and re.match(rf"\.?{re.escape(family)}[-.]", path.name))


def _stock(place: Path, family: str) -> Stock:
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
    return Stock(place, family, about, len(np.unique(np.concatenate(keys))), size_on_disk(files), max(used, default=0.0))


def _stat(path: Path) -> os.stat_result:
    """Of a file that may have been removed meanwhile: it has no bytes then."""
    try:
        return path.stat()
    except FileNotFoundError:
        return os.stat_result([0] * 19)


def size_on_disk(files: Iterable[Path]) -> int:
    """Bytes that files take; less than their length where they have holes."""
    return sum(_stat(path).st_blocks * 512 for path in files)


def others(folder: Path) -> dict[str, int]:
    """Bytes on the disk of what else is there, by name: what data sets of other formats have been turned to, pictures out of them."""
    names = [path for path in sorted(folder.iterdir() if folder.is_dir() else ()) if path.name != ROWS and not OLD.fullmatch(path.name)]
    return {path.name: size_on_disk([path, *path.rglob("*")] if path.is_dir() else [path]) for path in names}


def old_files(folder: Path) -> list[Path]:
    """An earlier version's rows, a file each in folders of two letters."""
    above = [path for path in (folder.iterdir() if folder.is_dir() else ()) if OLD.fullmatch(path.name) and path.is_dir()]
    return sorted(path for place in above for path in place.iterdir() if OLD_ROW.fullmatch(path.name))


def remove_old(files: Iterable[Path]) -> None:
    """Removes an earlier version's rows, and the folders that are empty then.

    Raises:
        OSError: the file system refuses.
    """
    files = list(files)
    for path in files:
        path.unlink(missing_ok=True)
    for place in {path.parent for path in files}:
        with suppress(OSError):  # something else is in it
            place.rmdir()


def has_old(folder: Path) -> bool:
    """Whether there are folders of an earlier version's rows."""
    return any(OLD.fullmatch(path.name) for path in (folder.iterdir() if folder.is_dir() else ()))


def free_space(folder: Path) -> int:
    """Bytes that are free where a folder is, or would be."""
    whole = folder.expanduser().absolute()
    return shutil.disk_usage(next(p for p in (whole, *whole.parents) if p.is_dir())).free


def require_space(folder: Path, size: int) -> None:
    """Asks whether a cache has room for so many bytes more.

    Raises:
        UserError: it has not; the message says what is missing.
    """
    free = free_space(folder)
    if free < size:
        raise UserError(
            f"data.cache_dir: {folder}: the rows that are to be encoded take {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free: "
            f"{(size - free) / 1e9:.1f} GB are missing; choose another folder, or see what 'ff-data cache' can remove"
        )
