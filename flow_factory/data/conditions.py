"""The conditions of a sequence of rows: read from the cache on demand, and encoded if missing."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from flow_factory.data.cache import ConditionCache
from flow_factory.data.cache_folder import has_old
from flow_factory.data.condition_files import FileChanged
from flow_factory.data.inputs import condition_files
from flow_factory.data.packing import in_memory, pack
from flow_factory.types import Cond, Row
from flow_factory.utils.errors import UserError
from flow_factory.utils.lazy import LazySequence
from flow_factory.utils.terminal import bar

logger = logging.getLogger(__name__)

GOES_ON = "the run goes on, and encodes rows again each time it needs them"


class Conditions(LazySequence[Cond]):
    """The conditions of some rows, read from the cache on access. A condition that is missing or damaged is encoded on access.

    Large tensors are memory-mapped, one map for each shard, since Linux limits a process to about 65,000 maps. Images cannot be mapped,
    since Pillow needs its own 4 bytes a pixel: an image is built on access, shared by all who hold it, and freed with the last reference.
    So memory grows with the rows in use, not with the data set. Do not modify the tensors or the images in place.

    Args:
        encode: returns the condition of a row.
        keys: the cache keys of rows that were looked up, by index.
    """

    def __init__(self, cache: ConditionCache, rows: Sequence[Row], encode: Callable[[Row], Cond], keys: Mapping[int, str] | None = None):
        self.cache, self.rows, self.encode = cache, rows, encode
        self.keys = dict(keys or {})  # of rows with files, since a file may be deleted during the run

    def __len__(self) -> int:
        return len(self.rows)

    def item(self, index: int) -> Cond:
        row = self.rows[index]
        key = self.keys.get(index) or self.cache.key(row)
        try:
            cond = self.cache.read(row, key)
        except FileChanged as changed:
            self.cache.warn_changed(row, str(changed))
            key, cond = self.cache.key(row), None
        if condition_files(row):
            self.keys[index] = key
        return self._encoded(row, key) if cond is None else cond

    def _encoded(self, row: Row, key: str) -> Cond:
        """Encodes the row and stores the result. If the cache fails, it warns and goes on without it."""
        cond = self.encode(row)
        try:
            self.cache.put(row, cond, key)
            found = self.cache.read(row, key)
        except (UserError, FileChanged) as error:
            self.cache.warn(f"{error}; {GOES_ON}")
            found = None
        return in_memory(pack(cond, bytes.fromhex(key))) if found is None else found


def look_up(
    rows: Sequence[Row], cache: ConditionCache, progress: bool = True, needed: Iterable[int] | None = None, share: tuple[int, int] = (0, 1)
) -> tuple[dict[int, str], dict[str, int]]:
    """Looks rows up in the cache, which reads their condition files. Equal rows share one condition.

    Args:
        needed: indices of the rows to look up; None: all.
        share: (k, n): this is process k of n, and looks up every n-th row.

    Returns:
        The cache keys of the rows that have files, by index; and for each key that the cache lacks, the index of its row.
    """
    cache.refresh()
    if progress and has_old(cache.folder):
        logger.warning(
            "data.cache_dir: %s has rows of an earlier version, which are not read; 'ff-data cache prune --old' removes them", cache.folder
        )
    own = list(range(len(rows)) if needed is None else needed)[share[0] :: share[1]]
    keys, missing = dict[int, str](), dict[str, int]()
    for k in bar(own, "looking up rows", "row", progress, delay=2):
        row = rows[k]
        key = cache.key(row)
        if condition_files(row):
            keys[k] = key
        if key not in missing and not cache.holds(key):
            missing[key] = k
    cache.save()
    return keys, missing


def encode_missing(
    missing: Iterable[tuple[str, int]], rows: Sequence[Row], encode: Callable[[Row], Cond], cache: ConditionCache, strict: bool = True
) -> None:
    """Encodes the rows that the cache lacks. A row is hashed and written while the next one is encoded.

    Args:
        missing: (cache key, index of its row).
        strict: raise if the cache cannot be written to. Otherwise warn and stop: the remaining rows are encoded when they are used.

    Raises:
        UserError: the cache cannot be written to, see `ConditionCache.put`.
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
