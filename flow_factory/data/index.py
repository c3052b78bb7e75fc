"""Finds rows in the cache: index files of fixed-size records, read into sorted arrays. Needs numpy alone.

Each writer has its own `NAME.shard` with the bytes and `NAME.index`, to which it appends a record once the bytes are written.
Nobody else writes to these files, so no lock is needed, and a network file system is sufficient.
"""

import logging
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

logger = logging.getLogger(__name__)

RECORD = np.dtype([("high", "<u8"), ("low", "<u8"), ("offset", "<u8"), ("size", "<u8"), ("kind", "<u8")])
"""The first 16 bytes of a key, and where its entry is in the shard; kind: `ROW` or `PART`."""
MAGIC = b"flow_factory shard index, format 1".ljust(RECORD.itemsize)
"""The first bytes of an index. Raise the number when the format changes."""
ROW, PART = 0, 1
"""Kinds of entries: a row's structure with its small tensors; a large tensor, whose key is the hash of its content."""
ENTRY = np.dtype([("low", "<u8"), ("offset", "<u8"), ("size", "<u8"), ("shard", "<u4")])
MOST_SEGMENTS, MOST_FRESH = 8, 10_000
"""The most sorted arrays that are searched one by one, and the most records of this process that are not in one yet."""


class Place(NamedTuple):
    """The position of an entry in a shard."""

    shard: int
    """Index of the shard in `Index.names`."""
    offset: int
    size: int

    @property
    def end(self) -> int:
        return self.offset + self.size


def halves(key: bytes) -> tuple[int, int]:
    """The part of a key that the index stores, as two integers."""
    high, low = struct.unpack("<QQ", key[:16])
    return high, low


def read_records(path: Path, known: int = 0) -> tuple[np.ndarray, int]:
    """The records (n,) of an index after its first `known` bytes, and how many bytes are known now.

    Records that point outside the shard are left out, and so is a partial last record.

    Raises:
        OSError: the index cannot be read.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not known:
            if size < len(MAGIC):  # its writer has just begun
                return np.empty(0, RECORD), 0
            if file.read(len(MAGIC)) != MAGIC:
                logger.warning("%s is damaged, or of another version: its rows are encoded again", path)
                return np.empty(0, RECORD), size
            known = len(MAGIC)
        file.seek(known)
        records = np.fromfile(file, RECORD, max(0, size - known) // RECORD.itemsize)
    total = np.uint64(size_of(path.with_suffix(".shard")))
    inside = records["offset"] <= total
    whole = inside & (records["size"] <= np.where(inside, total - records["offset"], 0))
    return records[whole], known + records.nbytes


def size_of(path: Path) -> int:
    """The file's size in bytes; 0 if there is no file. It opens the file, since `stat` on a network file system may be outdated."""
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        return 0


class Index:
    """The entries of all shards of a folder, in memory: 36 bytes a record."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.names: list[str] = []
        self.numbers: dict[str, int] = {}
        self.read: dict[str, int] = {}  # bytes of each index file that were read
        self.segments: list[tuple[np.ndarray, np.ndarray]] = []  # the "high" halves of the keys (n,), sorted, and the entries (n,)
        self.fresh: dict[tuple[int, int], Place] = {}  # added by this process

    def path(self, place: Place) -> Path:
        """The path of the shard."""
        return self.folder / self.names[place.shard]

    def number(self, name: str) -> int:
        """The index in `names` of a shard with this file name."""
        if name not in self.numbers:
            self.numbers[name] = len(self.names)
            self.names.append(name)
        return self.numbers[name]

    def refresh(self) -> None:
        """Reads the records that any process has appended since the last call. A missing folder counts as empty.

        Raises:
            OSError: an index cannot be read.
        """
        parts = []
        for name, size in self._files():
            known = self.read.get(name, 0)
            if size - known < RECORD.itemsize:
                continue
            try:
                records, self.read[name] = read_records(self.folder / name, known)
            except FileNotFoundError:  # removed since it was listed
                continue
            entries = _entries(records["low"], records["offset"], records["size"], self.number(f"{name.removesuffix('.index')}.shard"))
            parts.append((records["high"], entries))
        if parts:
            self._append(parts)

    def _files(self) -> list[tuple[str, int]]:
        try:
            with os.scandir(self.folder) as entries:
                return sorted((entry.name, entry.stat().st_size) for entry in entries if entry.name.endswith(".index"))
        except FileNotFoundError:
            return []

    def add(self, key: bytes, place: Place) -> None:
        """Adds an entry that this process has just appended. The caller must update `read` too."""
        self.fresh[halves(key)] = place
        if len(self.fresh) >= MOST_FRESH:  # Python objects take ten times the memory of arrays
            high, low = np.array(list(self.fresh), "<u8").T
            shard, offset, size = np.array(list(self.fresh.values()), "<u8").T
            self._append([(high, _entries(low, offset, size, shard))])
            self.fresh.clear()

    def _append(self, parts: list[tuple[np.ndarray, np.ndarray]]) -> None:
        self.segments.append(_sorted(parts))
        if len(self.segments) > MOST_SEGMENTS:
            self.segments = [_sorted(self.segments)]

    def find(self, key: bytes) -> Iterator[Place]:
        """Every place of a key, the latest first; several writers may have written it."""
        high, low = halves(key)
        if (high, low) in self.fresh:
            yield self.fresh[high, low]
        for keys, entries in reversed(self.segments):
            first, last = (int(np.searchsorted(keys, np.uint64(high), side)) for side in ("left", "right"))
            for entry in entries[first:last][::-1]:
                if int(entry["low"]) == low:
                    yield Place(int(entry["shard"]), int(entry["offset"]), int(entry["size"]))


def _entries(low: np.ndarray, offset: np.ndarray, size: np.ndarray, shard: np.ndarray | int) -> np.ndarray:
    entries = np.empty(len(low), ENTRY)
    entries["low"], entries["offset"], entries["size"], entries["shard"] = low, offset, size, shard
    return entries


def _sorted(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    high, entries = (np.concatenate([part[k] for part in parts]) for k in (0, 1))
    order = np.argsort(high, kind="stable")
    return high[order], entries[order]
