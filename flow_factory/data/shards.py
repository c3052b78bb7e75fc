"""Bytes by key in files of some hundred megabytes, which are only appended to: whole or not at all, for several runs and machines at once.

What is read is compared with its hash once a process: a shard that was cut, changed or removed is as one that never was.
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
"""Bytes after which a writer begins another shard."""
ALIGNED = 64
"""Offsets are multiples of it, as torch's own memory is."""
DIGEST = 32
READ = 1 << 20
MOST_ROW = 64 << 20
"""Bytes of a row without its large tensors: what a lying index may have read at once."""
CUT, CHANGED = "it was cut short", "it is damaged: its bytes are not those that were written"
Found = TypeVar("Found")


def digest(*parts: bytes | memoryview) -> bytes:
    """Of bytes: BLAKE2b of 32 bytes, which takes 0.7 ms a megabyte on every CPU; SHA-256 takes 0.5 or 2.5, as the CPU can."""
    state = blake2b(digest_size=DIGEST)
    for part in parts:
        state.update(part)
    return state.digest()


class Blob(NamedTuple):
    """What is to be appended under a key."""

    key: bytes
    kind: int
    parts: Sequence[bytes | memoryview]


class Writer:
    """A shard and an index of this process alone.

    Both are opened for each write and closed after it: then other machines see it, and a folder that has gone is noticed.
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
        """Whether it is as it was left: not removed, not cut, and not of the process that this one is a fork of."""
        try:
            whole = self.shard.stat().st_size >= self.end and self.index.stat().st_size >= self.index_end
        except (FileNotFoundError, NotADirectoryError):
            return False
        return whole and self.process == os.getpid()

    def append(self, blobs: Sequence[Blob]) -> list[tuple[int, int]]:
        """Offset and size of each.

        Raises:
            OSError: the file system refuses; what was begun is cut off.
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
                with suppress(OSError):  # room for others, no more
                    index.truncate(self.index_end)
                    shard.truncate(self.end)
                raise
        self.end, self.index_end = end, self.index_end + len(records)
        return places


def write_at(file: int, data: bytes | memoryview, offset: int) -> int:
    """All of it; the number of bytes."""
    view, done = memoryview(data), 0
    while done < len(view):
        done += os.pwrite(file, view[done:], offset + done)
    return done


class Shards:
    """Rows and parts by key.

    Args:
        folder: of one set of encoders.
        family: how the names of this process's own shards begin.
        describe: called before a shard is begun.
    """

    def __init__(self, folder: Path, family: str = "", describe: Callable[[], None] = lambda: None):
        self.folder, self.family, self.describe = folder, family, describe
        self.index, self.lock = Index(folder), threading.RLock()
        self.writer: Writer | None = None
        self.whole, self.lost = set[Place](), dict[Place, str]()  # what was looked at; and why it cannot be used
        self.maps: dict[int, np.ndarray] = {}
        self.said = set[int]()
        self.grown = 0
        """Bytes that this process has put here."""

    def refresh(self) -> None:
        """See `Index.refresh`."""
        with self.lock:
            self.index.refresh()

    def holder(self, key: bytes) -> str | None:
        """The name of a shard that has a key, as far as is known without reading it."""
        place = next(iter(self._places(key)), None)
        return None if place is None else self.index.names[place.shard]

    def row(self, key: bytes) -> tuple[bytes, Place] | None:
        """What was put under a row's key, and where; None where there is nothing, or nothing whole."""
        return self._first(key, lambda place: self._row(place, key))

    def part(self, key: bytes, size: int) -> np.ndarray | None:
        """Bytes (size,) by the hash of their content, mapped; None where they are not, or not whole."""
        return self._first(key, lambda place: self._mapped(place) if place.size == size and self._right(place, key) else None)

    def append(self, blobs: Sequence[Blob]) -> None:
        """Keeps what is not there yet.

        Raises:
            OSError: the file system refuses.
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

    def lose(self, place: Place, reason: str) -> None:
        """Forgets what is at a place."""
        self.lost[place] = reason
        self.maps.pop(place.shard, None)

    def tell(self, key: bytes) -> None:
        """Says why a key's bytes cannot be used, once a shard."""
        for place in self.index.find(key):
            if place in self.lost and place.shard not in self.said:
                self.said.add(place.shard)
                text = "data.cache_dir: %s: %s; what it had is encoded again where it is needed"
                logger.warning(text, self.index.path(place), self.lost[place])

    def _ready(self, size: int) -> Writer:
        """A writer with room for so many bytes, or one that has none yet."""
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
        """What is read at the first place of a key that is right, among what is known, or else what others have appended since."""
        tried = set[Place]()
        for again in (False, True):
            if again:
                with suppress(OSError):  # then there is nothing
                    self.refresh()
            for place in self._places(key):
                if place in tried:
                    continue
                tried.add(place)
                try:
                    found = read(place)
                except OSError as error:
                    self.lose(place, error.strerror or str(error))
                    continue
                if found is not None:
                    return found
        self.tell(key)
        return None

    def _there(self, place: Place) -> bool:
        """Whether the shard still reaches so far."""
        try:
            reaches = self.index.path(place).stat().st_size >= place.end
        except OSError as error:
            self.lose(place, error.strerror or str(error))
            return False
        if not reaches:
            self.lose(place, CUT)
        return reaches

    def _row(self, place: Place, key: bytes) -> tuple[bytes, Place] | None:
        data = b"".join(self._read(place)) if place.size <= MOST_ROW else b""
        if len(data) == place.size and digest(key, data[DIGEST:]) == data[:DIGEST]:
            return data[DIGEST:], place
        self.lose(place, CUT if len(data) < place.size <= MOST_ROW else CHANGED)
        return None

    def _right(self, place: Place, key: bytes) -> bool:
        """Whether the bytes are those of the hash; looked at once."""
        if place not in self.whole:
            if digest(*self._read(place)) != key:
                self.lose(place, CHANGED)
                return False
            self.whole.add(place)
        return True

    def _read(self, place: Place) -> Iterator[bytes]:
        """The bytes, as far as they are there: mapped memory whose file was cut would end the process."""
        with self.index.path(place).open("rb", buffering=0) as file:
            for begin in range(place.offset, place.end, READ):
                yield os.pread(file.fileno(), min(READ, place.end - begin), begin)

    def _mapped(self, place: Place) -> np.ndarray | None:
        """The bytes in a map of the shard: one a shard, since Linux has some 65,000 for a process; no file stays open for it."""
        if not self._there(place):
            return None
        known = self.maps.get(place.shard)
        if known is None or len(known) < place.end:
            path = self.index.path(place)
            known = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8).numpy()
            self.maps[place.shard] = known
        return known[place.offset : place.end]
