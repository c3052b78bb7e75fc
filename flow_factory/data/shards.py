"""A key-value store in append-only files of a few hundred megabytes. Writes are atomic; several runs and machines can share it.

A process verifies the hash of each entry when it first reads it. Entries of a shard that was truncated, changed or removed count as
missing.
"""

import logging
import os
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from flow_factory.data.index import MAGIC, RECORD, ROW, Index, Place, halves

logger = logging.getLogger(__name__)

SHARD = 256 << 20
"""A writer begins another shard after this many bytes."""
ALIGNED = 64
"""Offsets are multiples of this many bytes, the alignment of torch's own memory."""
DIGEST = 32
READ = 1 << 20
MOST_ROW = 64 << 20
"""The most bytes of a row without its large tensors: the limit for one read, in case an index is wrong."""
CUT, CHANGED = "it was cut short", "it is damaged: its bytes are not those that were written"
Found = TypeVar("Found")


def digest(*parts: bytes | memoryview) -> bytes:
    """BLAKE2b of 32 bytes. It takes 0.7 ms/MB on every CPU; SHA-256 takes 0.5 or 2.5, depending on the CPU's instructions."""
    state = blake2b(digest_size=DIGEST)
    for part in parts:
        state.update(part)
    return state.digest()


class Blob(NamedTuple):
    """An entry to append."""

    key: bytes
    kind: int
    parts: Sequence[bytes | memoryview]


class Writer:
    """A shard and its index, which only this process writes.

    Both are opened for each write and closed after it, so that other machines see the write and a removed folder is noticed.
    """

    def __init__(self, folder: Path, name: str):
        self.shard, self.index = folder / f"{name}.shard", folder / f"{name}.index"
        self.process, self.end, self.index_end = os.getpid(), 0, len(MAGIC)
        self.shard.open("xb").close()
        try:
            with self.index.open("xb", buffering=0) as file:
                file.write(MAGIC)
        except OSError:
            self.shard.unlink(missing_ok=True)
            self.index.unlink(missing_ok=True)
            raise

    def ours(self) -> bool:
        """Whether both files are as this process left them: not removed, not truncated, and not opened by the parent of a fork."""
        try:
            whole = self.shard.stat().st_size >= self.end and self.index.stat().st_size >= self.index_end
        except (FileNotFoundError, NotADirectoryError):
            return False
        return whole and self.process == os.getpid()

    def append(self, blobs: Sequence[Blob]) -> list[tuple[int, int]]:
        """Appends the blobs; returns the offset and size of each.

        Raises:
            OSError: from the file system; a partial write is truncated.
        """
        places, end = [], self.end
        with self.shard.open("r+b", buffering=0) as shard, self.index.open("r+b", buffering=0) as index:
            try:
                for blob in blobs:
                    begin = end = -(-end // ALIGNED) * ALIGNED
                    for part in blob.parts:
                        end += write_at(shard.fileno(), part, end)
                    places.append((begin, end - begin))
                records = np.array([(*halves(b.key), *place, b.kind) for b, place in zip(blobs, places, strict=True)], RECORD).tobytes()
                write_at(index.fileno(), records, self.index_end)
            except OSError:
                with suppress(OSError):  # this only frees space
                    index.truncate(self.index_end)
                    shard.truncate(self.end)
                raise
        self.end, self.index_end = end, self.index_end + len(records)
        return places


def write_at(file: int, data: bytes | memoryview, offset: int) -> int:
    """Writes all bytes of `data`; returns how many there are."""
    view, done = memoryview(data), 0
    while done < len(view):
        done += os.pwrite(file, view[done:], offset + done)
    return done


class Shards:
    """The rows and large tensors of a folder, by key.

    Args:
        folder: the folder of one set of encoders.
        family: the prefix of the names of the shards that this process writes.
        describe: called before a shard is created.
    """

    def __init__(self, folder: Path, family: str = "", describe: Callable[[], None] = lambda: None):
        self.folder, self.family, self.describe = folder, family, describe
        self.index, self.lock = Index(folder), threading.RLock()
        self.writer: Writer | None = None
        self.whole, self.lost = set[Place](), dict[Place, str]()  # entries with a verified hash; unusable ones and why
        self.maps: dict[int, np.ndarray] = {}
        self.warned = set[int]()
        self.grown = 0
        """Bytes that this process has appended."""

    def refresh(self) -> None:
        """See `Index.refresh`."""
        with self.lock:
            self.index.refresh()

    def holder(self, key: bytes) -> str | None:
        """The name of a shard that has the key according to the index; the shard is not read."""
        place = next(iter(self._places(key)), None)
        return None if place is None else self.index.names[place.shard]

    def row(self, key: bytes) -> tuple[bytes, Place] | None:
        """The bytes stored under a row's key, and their place; None if there are none, or only damaged ones."""
        return self._first(key, lambda place: self._row(place, key))

    def part(self, key: bytes, size: int) -> np.ndarray | None:
        """The bytes (size,) with this content hash, memory-mapped; None if they are missing or damaged."""
        return self._first(key, lambda place: self._mapped(place) if place.size == size and self._right(place, key) else None)

    def append(self, blobs: Sequence[Blob]) -> None:
        """Appends the rows, and those large tensors that are not stored yet.

        Raises:
            OSError: from the file system.
        """
        with self.lock:
            new = [blob for blob in blobs if blob.kind == ROW or not any(map(self._there, self._places(blob.key)))]
            writer = self._ready(sum(len(part) + ALIGNED for blob in new for part in blob.parts))
            places = writer.append(new)
            number = self.index.number(writer.shard.name)
            for blob, (offset, size) in zip(new, places, strict=True):
                self.grown += size
                self.index.add(blob.key, Place(number, offset, size))
            self.index.read[writer.index.name] = writer.index_end

    def mark_unusable(self, place: Place, reason: str) -> None:
        """Marks the entry at a place as unusable."""
        self.lost[place] = reason
        self.maps.pop(place.shard, None)

    def warn_unusable(self, key: bytes) -> None:
        """Warns, once for each shard, why a key's bytes cannot be used."""
        for place in self.index.find(key):
            if place in self.lost and place.shard not in self.warned:
                self.warned.add(place.shard)
                text = "data.cache_dir: %s: %s; its rows are encoded again when they are needed"
                logger.warning(text, self.index.path(place), self.lost[place])

    def _ready(self, size: int) -> Writer:
        """The writer of the current shard if `size` bytes still fit into it; else one with a new shard."""
        writer = self.writer
        if writer is None or not writer.ours() or 0 < writer.end > SHARD - size:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.describe()
            writer = self.writer = Writer(self.folder, f"{self.family}{secrets.token_hex(8)}")
        return writer

    def _places(self, key: bytes) -> list[Place]:
        with self.lock:
            return [place for place in self.index.find(key) if place not in self.lost]

    def _first(self, key: bytes, read: Callable[[Place], Found | None]) -> Found | None:
        """Reads the first valid place of a key: first among the known ones, then among those that others have appended since."""
        tried = set[Place]()
        for again in (False, True):
            if again:
                with suppress(OSError):  # then nothing new is found
                    self.refresh()
            for place in self._places(key):
                if place in tried:
                    continue
                tried.add(place)
                try:
                    found = read(place)
                except OSError as error:
                    self.mark_unusable(place, error.strerror or str(error))
                    continue
                if found is not None:
                    return found
        self.warn_unusable(key)
        return None

    def _there(self, place: Place) -> bool:
        """Whether the shard is still long enough to have this place."""
        try:
            reaches = self.index.path(place).stat().st_size >= place.end
        except OSError as error:
            self.mark_unusable(place, error.strerror or str(error))
            return False
        if not reaches:
            self.mark_unusable(place, CUT)
        return reaches

    def _row(self, place: Place, key: bytes) -> tuple[bytes, Place] | None:
        data = b"".join(self._read(place)) if place.size <= MOST_ROW else b""
        if len(data) == place.size and digest(key, data[DIGEST:]) == data[:DIGEST]:
            return data[DIGEST:], place
        self.mark_unusable(place, CUT if len(data) < place.size <= MOST_ROW else CHANGED)
        return None

    def _right(self, place: Place, key: bytes) -> bool:
        """Whether the bytes have the hash `key`; verified once a process."""
        if place not in self.whole:
            if digest(*self._read(place)) != key:
                self.mark_unusable(place, CHANGED)
                return False
            self.whole.add(place)
        return True

    def _read(self, place: Place) -> Iterator[bytes]:
        """Reads the bytes that are there. Mapped memory of a truncated file would kill the process with SIGBUS."""
        with self.index.path(place).open("rb", buffering=0) as file:
            for begin in range(place.offset, place.end, READ):
                yield os.pread(file.fileno(), min(READ, place.end - begin), begin)

    def _mapped(self, place: Place) -> np.ndarray | None:
        """The bytes in the shard's memory map. There is one map for each shard, since Linux limits a process to about 65,000."""
        if not self._there(place):
            return None
        known = self.maps.get(place.shard)
        if known is None or len(known) < place.end:
            path = self.index.path(place)
            known = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8).numpy()
            self.maps[place.shard] = known
        return known[place.offset : place.end]
