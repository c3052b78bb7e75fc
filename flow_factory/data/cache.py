"""Encodes every row once and keeps the result on disk, found again by content: what changes is encoded anew, nothing else is."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import overload
from weakref import WeakValueDictionary

from PIL import Image
from torch import Tensor

from flow_factory.data.cache_folder import Family, has_old, place_of
from flow_factory.data.condition_files import FileChanged, Opener, Seeker, decoders
from flow_factory.data.fingerprints import FileHashes
from flow_factory.data.packing import MalformedError, in_memory, pack, picture_of, unpack
from flow_factory.data.reader import DataError
from flow_factory.data.shards import CHANGED, Shards
from flow_factory.types import Cond, Row
from flow_factory.utils.background import Background
from flow_factory.utils.errors import RunError, UserError, file_errors
from flow_factory.utils.terminal import bar

logger = logging.getLogger(__name__)

SHARED = "choose another folder, or let all who share this one read and write it (umask 002)"
ROOM = "make room ('ff-data cache' shows what can be removed), or choose another folder"
GOES_ON = "the run goes on, and encodes rows anew whenever it asks for them"


class Conditions(Sequence[Cond]):
    """The conditions of some rows, read from the cache when they are asked for; one that is not there, or not whole, is encoded then.

    Large tensors are mapped memory, which stays on the disk until it is read; there is one map a shard, since Linux has some 65,000 for a
    process. An image cannot be mapped, since Pillow wants 4 bytes of its own a pixel: it is made when it is asked for, shared by all who
    hold it, and gone with the last of them. So a data set of any size takes the memory of the rows in use.
    Neither tensors nor images may be written to.

    Args:
        encode: makes the condition of a row.
        keys: of rows that were looked up, by their place.
    """

    def __init__(self, cache: "ConditionCache", rows: Sequence[Row], encode: Callable[[Row], Cond], keys: Mapping[int, str] | None = None):
        self.cache, self.rows, self.encode = cache, rows, encode
        self.keys = dict(keys or {})  # of rows with files, which need not stay as long as the run

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Cond: ...
    @overload
    def __getitem__(self, index: slice) -> "Conditions": ...
    def __getitem__(self, index: int | slice) -> "Cond | Conditions":
        chosen = range(len(self.rows))[index]
        if isinstance(chosen, range):
            known = {n: self.keys[k] for n, k in enumerate(chosen) if k in self.keys}
            return Conditions(self.cache, [self.rows[k] for k in chosen], self.encode, known)
        row = self.rows[chosen]
        key = self.keys.get(chosen) or self.cache.key(row)
        try:
            cond = self.cache.read(row, key)
        except FileChanged as changed:
            self.cache.say_changed(row, str(changed))
            key, cond = self.cache.key(row), None
        if row.images or row.videos:
            self.keys[chosen] = key
        return self._encoded(row, key) if cond is None else cond

    def _encoded(self, row: Row, key: str) -> Cond:
        """Encoded now, and kept where that is possible: a run does not end for its cache."""
        cond = self.encode(row)
        try:
            self.cache.put(row, cond, key)
            found = self.cache.read(row, key)
        except (UserError, FileChanged) as error:
            self.cache.warn(f"{error}; {GOES_ON}")
            found = None
        return in_memory(pack(cond, bytes.fromhex(key))) if found is None else found


class ConditionCache:
    """Conditions by content, in the shards of a folder; see `shards`, `packing`.

    Args:
        fingerprint: stands for all that the encoding depends on beside the row: encoder weights, call arguments, package versions.
        about: what `ff-data cache` says of it: `dataset_dir`, `model`, `model_type`.
    """

    def __init__(self, folder: Path, fingerprint: str, about: Mapping[str, str] | None = None):
        self.folder, self.fingerprint = Path(folder).expanduser(), fingerprint
        self.family = Family(place_of(self.folder, fingerprint), about or {})
        self.shards = Shards(self.family.folder, f"{self.family.name}-", self.family.describe)
        self.writer = Background("encoded rows")
        self.hashes: FileHashes | None = None
        self.looked = self.warned = False
        self.changed = set[str]()

    def key(self, row: Row) -> str:
        """sha256 of what the encoding depends on, the bytes of condition files among it; the row's other columns are for rewards.

        Raises:
            DataError: a condition file is gone since it was checked.
        """
        files = [[self.hash_of(row, path) for path in paths] for paths in (row.images, row.videos)]
        parts = [self.fingerprint, row.prompt, row.negative_prompt, *files, *decoders(row)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def hash_of(self, row: Row, path: str) -> str:
        """sha256 of a row's file, which is not read again while its size and time of change stay the same.

        Raises:
            DataError: it cannot be read.
        """
        if self.hashes is None:
            self.hashes = FileHashes(self.folder / "hashes.jsonl")
        try:
            return self.hashes.of(path)
        except OSError as error:
            raise DataError(f"{row.source}: {path} cannot be read: {error.strerror}; a run needs the files of its rows") from error

    def save(self) -> None:
        """Keeps the hashes of files for later starts."""
        if self.hashes is not None:
            self.hashes.save()

    def has(self, row: Row) -> bool:
        """See `holds`."""
        return self.holds(self.key(row))

    def holds(self, key: str) -> bool:
        """Whether the row's condition is there; whether it is whole is seen when it is first read."""
        self._look()
        holder = self.shards.holder(bytes.fromhex(key))
        if holder is not None:
            self.family.used(holder)
        return holder is not None

    def _look(self) -> None:
        if not self.looked:
            self.look()

    def look(self) -> None:
        """Sees what other processes have kept since.

        Raises:
            UserError: the folder may not be read.
        """
        with file_errors("data.cache_dir", self.family.folder, SHARED):
            self.shards.refresh()
        self.looked = True

    def get(self, row: Row) -> Cond | None:
        """The condition, as `Conditions` has it; None where there is none, or none that is whole."""
        return self.read(row, self.key(row))

    def read(self, row: Row, key: str) -> Cond | None:
        """See `get`; what is damaged is said once a shard.

        Raises:
            FileChanged: a picture is in one of the row's files, which is not what it was.
            DataError: that file cannot be read.
        """
        self._look()
        found = self.shards.row(bytes.fromhex(key))
        if found is None:
            return None
        data, place = found
        self.family.used(self.shards.index.names[place.shard])
        try:
            return unpack(data, self.shards.part, partial(_shared, f"{self.folder} {key}"), Opener(row, partial(self.hash_of, row)))
        except MalformedError:
            self.shards.lose(place, CHANGED)
            self.shards.tell(bytes.fromhex(key))
            return None

    def put(self, row: Row, cond: Cond, key: str | None = None) -> None:
        """Keeps the condition; whole or not at all, also when killed or when two processes write at once.

        Raises:
            TypeError: see `pack`.
            UserError: the file system refuses; a `RunError` where the disk is full.
        """
        self._look()
        key = key or self.key(row)
        blobs = pack(cond, bytes.fromhex(key), Seeker(row, partial(self.hash_of, row)))
        try:
            with file_errors("data.cache_dir", self.family.folder, SHARED):
                self.shards.append(blobs)
        except OSError as error:
            raise RunError(f"data.cache_dir: {self.folder}: {error.strerror}: rows that were encoded before are kept; {ROOM}") from error

    def say_changed(self, row: Row, path: str) -> None:
        """Says of a file, once, that it is not what it was."""
        if path not in self.changed:
            logger.warning("%s: %s has changed since the run began; its row is encoded anew", row.source, path)
        self.changed.add(path)

    def warn(self, text: str) -> None:
        """Says it once."""
        if not self.warned:
            logger.warning("%s", text)
        self.warned = True


def encode_rows(
    rows: Sequence[Row], encode: Callable[[Row], Cond], cache: ConditionCache, progress: bool = True, wanted: Iterable[int] | None = None,
    share: tuple[int, int] = (0, 1), strict: bool = True,
) -> Conditions:  # fmt: skip
    """The condition of each row, calling `encode` only for what the cache lacks; equal rows share one condition.

    What was just encoded is read back from the cache, so that a first run and a second one compute with the same tensors.

    Args:
        wanted: the rows that will be asked for; None: all.
        share: (k, n): the k-th of n processes, which look up and encode every n-th of them.
        strict: whether a cache that cannot be written to is refused; else it is said, and rows are left to be encoded when they are used.

    Raises:
        UserError: it is refused, see `ConditionCache.put`.
    """
    keys, missing = look_up(rows, cache, progress, wanted, share)
    encode_missing(bar(missing.items(), "encoding rows", "row", progress), rows, encode, cache, strict)
    return Conditions(cache, rows, encode, keys)


def look_up(
    rows: Sequence[Row], cache: ConditionCache, progress: bool = True, wanted: Iterable[int] | None = None, share: tuple[int, int] = (0, 1)
) -> tuple[dict[int, str], dict[str, int]]:
    """Of this process's share, see `encode_rows`: keys of rows that have files, by their place; and the place of each key that is missing.

    Reads the rows' condition files.
    """
    cache.look()
    if progress and has_old(cache.folder):
        logger.warning(
            "data.cache_dir: %s has rows of an earlier version, which are not read; 'ff-data cache prune --old' removes them", cache.folder
        )
    mine = list(range(len(rows)) if wanted is None else wanted)[share[0] :: share[1]]
    keys, missing = dict[int, str](), dict[str, int]()
    for k in bar(mine, "looking up rows", "row", progress, delay=2):
        row = rows[k]
        key = cache.key(row)
        if row.images or row.videos:
            keys[k] = key
        if key not in missing and not cache.holds(key):
            missing[key] = k
    cache.save()
    return keys, missing


def encode_missing(
    missing: Iterable[tuple[str, int]], rows: Sequence[Row], encode: Callable[[Row], Cond], cache: ConditionCache, strict: bool = True
) -> None:
    """See `encode_rows`. A row is hashed and written while the next one is encoded.

    Args:
        missing: keys, and the places of their rows.
    """

    def kept(write: Callable[[], None]) -> bool:
        try:
            write()
        except UserError as error:
            if strict:
                raise
            cache.warn(f"{error}; {GOES_ON}")
            return False
        return True

    try:
        for key, k in missing:
            row = rows[k]
            put = partial(cache.put, row, encode(row), key)
            if not kept(partial(cache.writer.start, put)):
                break
    finally:
        kept(cache.writer.wait)


_images: WeakValueDictionary[tuple[str, int], Image.Image] = WeakValueDictionary()


def _shared(key: str, number: int, pixels: Tensor) -> Image.Image:
    """The one PIL image of a row's tensor, made anew if nobody holds it."""
    image = _images.get((key, number))
    if image is None:
        image = _images[key, number] = picture_of(pixels)
    return image
