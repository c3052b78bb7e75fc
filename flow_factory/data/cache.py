"""The cache of encoded rows on disk, keyed by content: only what has changed is encoded again."""

import hashlib
import json
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from weakref import WeakValueDictionary

from PIL import Image
from torch import Tensor

from flow_factory.data.cache_folder import Family, place_of
from flow_factory.data.condition_files import Opener, Seeker, decoders
from flow_factory.data.fingerprints import FileHashes
from flow_factory.data.packing import MalformedError, pack, picture_of, unpack
from flow_factory.data.reader import DataError
from flow_factory.data.shards import CHANGED, Shards
from flow_factory.types import Cond, Row
from flow_factory.utils.background import Background
from flow_factory.utils.errors import RunError, file_errors

logger = logging.getLogger(__name__)

SHARED = "choose another folder, or let all who share this one read and write it (umask 002)"
ROOM = "make room ('ff-data cache' shows what can be removed), or choose another folder"


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


_images: WeakValueDictionary[tuple[str, int], Image.Image] = WeakValueDictionary()


def _shared(key: str, number: int, pixels: Tensor) -> Image.Image:
    """The one PIL image of a row's tensor, made anew if nobody holds it."""
    image = _images.get((key, number))
    if image is None:
        image = _images[key, number] = picture_of(pixels)
    return image
