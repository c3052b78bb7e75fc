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

from flow_factory.data.cache_folder import Family, rows_folder
from flow_factory.data.condition_files import FileReferences, ReferencedImages, decoders
from flow_factory.data.fingerprints import FileHashes
from flow_factory.data.inputs import inputs_of
from flow_factory.data.packing import MalformedError, image_of, pack, unpack
from flow_factory.data.reader import DataError
from flow_factory.data.shards import CHANGED, Shards
from flow_factory.types import Cond, Row
from flow_factory.utils.background import Background
from flow_factory.utils.errors import RunError, file_errors

logger = logging.getLogger(__name__)

SHARED = "choose another folder, or let all who share this one read and write it (umask 002)"
ROOM = "free space ('ff-data cache' shows what can be removed), or choose another folder"


class ConditionCache:
    """Conditions by the content of their rows, in the shards of a folder; see `shards`, `packing`.

    Args:
        fingerprint: identifies everything that the encoding depends on except the row: encoder weights, call arguments, package versions.
        about: what `ff-data cache` shows: `dataset_dir`, `model`, `model_type`.
    """

    def __init__(self, folder: Path, fingerprint: str, about: Mapping[str, str] | None = None):
        self.folder, self.fingerprint = Path(folder).expanduser(), fingerprint
        self.family = Family(rows_folder(self.folder, fingerprint), about or {})
        self.shards = Shards(self.family.folder, f"{self.family.name}-", self.family.describe)
        self.writer = Background("encoded rows")
        self.hashes: FileHashes | None = None
        self.refreshed = self.warned = False
        self.changed = set[str]()

    def key(self, row: Row) -> str:
        """sha256 of everything that the encoding depends on, with the bytes of condition files, and without columns for rewards.

        Raises:
            DataError: a condition file was removed since it was checked.
        """
        files = [[self.hash_of(row, path) for path in paths] for paths in (row.images, row.videos)]
        inputs = [[kind, name, [self.hash_of(row, path) for path in paths]] for name, kind, paths in inputs_of(row)]
        parts = [self.fingerprint, row.prompt, row.negative_prompt, *files, *decoders(row), *inputs]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def hash_of(self, row: Row, path: str) -> str:
        """sha256 of a row's file. The file is read again only when its size or modification time changes.

        Raises:
            DataError: the file cannot be read.
        """
        if self.hashes is None:
            self.hashes = FileHashes(self.folder / "hashes.jsonl")
        try:
            return self.hashes.of(path)
        except OSError as error:
            raise DataError(f"{row.source}: {path} cannot be read: {error.strerror}; a run needs all files of its rows") from error

    def save(self) -> None:
        """Stores the hashes of files for later starts."""
        if self.hashes is not None:
            self.hashes.save()

    def has(self, row: Row) -> bool:
        """Whether the row's condition is in the cache, see `holds`."""
        return self.holds(self.key(row))

    def holds(self, key: str) -> bool:
        """Whether the index has the key. The entry's hash is verified only when it is first read."""
        self._refresh_once()
        holder = self.shards.holder(bytes.fromhex(key))
        if holder is not None:
            self.family.used(holder)
        return holder is not None

    def _refresh_once(self) -> None:
        if not self.refreshed:
            self.refresh()

    def refresh(self) -> None:
        """Reads what other processes have stored since the last call.

        Raises:
            UserError: the folder cannot be read.
        """
        with file_errors("data.cache_dir", self.family.folder, SHARED):
            self.shards.refresh()
        self.refreshed = True

    def get(self, row: Row) -> Cond | None:
        """The condition, as in `Conditions`; None if it is missing or damaged."""
        return self.read(row, self.key(row))

    def read(self, row: Row, key: str) -> Cond | None:
        """See `get`. It warns once for each damaged shard.

        Raises:
            FileChanged: the entry refers to an image in one of the row's files, and the file has changed.
            DataError: that file cannot be read.
        """
        self._refresh_once()
        found = self.shards.row(bytes.fromhex(key))
        if found is None:
            return None
        data, place = found
        self.family.used(self.shards.index.names[place.shard])
        try:
            return unpack(
                data, self.shards.part, partial(_shared, f"{self.folder} {key}"), ReferencedImages(row, partial(self.hash_of, row))
            )
        except MalformedError:
            self.shards.mark_unusable(place, CHANGED)
            self.shards.warn_unusable(bytes.fromhex(key))
            return None

    def put(self, row: Row, cond: Cond, key: str | None = None) -> None:
        """Stores the condition atomically, even if the process is killed or two processes write at once.

        Raises:
            TypeError: see `pack`.
            UserError: the file system refuses the write; a `RunError` if the disk is full.
        """
        self._refresh_once()
        key = key or self.key(row)
        blobs = pack(cond, bytes.fromhex(key), FileReferences(row, partial(self.hash_of, row)))
        try:
            with file_errors("data.cache_dir", self.family.folder, SHARED):
                self.shards.append(blobs)
        except OSError as error:
            raise RunError(f"data.cache_dir: {self.folder}: {error.strerror}: rows that were encoded before are kept; {ROOM}") from error

    def warn_changed(self, row: Row, path: str) -> None:
        """Warns once for each file that has changed."""
        if path not in self.changed:
            logger.warning("%s: %s has changed since the run began; its row is encoded again", row.source, path)
        self.changed.add(path)

    def warn(self, text: str) -> None:
        """Logs a warning, only the first one of this cache."""
        if not self.warned:
            logger.warning("%s", text)
        self.warned = True


_images: WeakValueDictionary[tuple[str, int], Image.Image] = WeakValueDictionary()


def _shared(key: str, number: int, pixels: Tensor) -> Image.Image:
    """The PIL image of a row's tensor, shared by all who hold it."""
    image = _images.get((key, number))
    if image is None:
        image = _images[key, number] = image_of(pixels)
    return image
