"""The conditions of some rows: read from the cache on demand, and encoded if missing."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from flow_factory.data.cache import ConditionCache
from flow_factory.data.cache_folder import has_old
from flow_factory.data.condition_files import FileChanged
from flow_factory.data.packing import in_memory, pack
from flow_factory.types import Cond, Row
from flow_factory.utils.errors import UserError
from flow_factory.utils.lazy import LazySequence
from flow_factory.utils.terminal import bar

logger = logging.getLogger(__name__)

GOES_ON = "the run goes on, and encodes rows anew whenever it asks for them"


class Conditions(LazySequence[Cond]):
    """The conditions of some rows, read from the cache when they are asked for; one that is not there, or not whole, is encoded then.

    Large tensors are mapped memory, which stays on the disk until it is read; there is one map a shard, since Linux has some 65,000 for a
    process. An image cannot be mapped, since Pillow wants 4 bytes of its own a pixel: it is made when it is asked for, shared by all who
    hold it, and gone with the last of them. So a data set of any size takes the memory of the rows in use.
    Neither tensors nor images may be written to.

    Args:
        encode: makes the condition of a row.
        keys: of rows that were looked up, by their place.
    """

    def __init__(self, cache: ConditionCache, rows: Sequence[Row], encode: Callable[[Row], Cond], keys: Mapping[int, str] | None = None):
        self.cache, self.rows, self.encode = cache, rows, encode
        self.keys = dict(keys or {})  # of rows with files, which need not stay as long as the run

    def __len__(self) -> int:
        return len(self.rows)

    def item(self, index: int) -> Cond:
        row = self.rows[index]
        key = self.keys.get(index) or self.cache.key(row)
        try:
            cond = self.cache.read(row, key)
        except FileChanged as changed:
            self.cache.say_changed(row, str(changed))
            key, cond = self.cache.key(row), None
        if row.images or row.videos:
            self.keys[index] = key
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


def look_up(
    rows: Sequence[Row], cache: ConditionCache, progress: bool = True, wanted: Iterable[int] | None = None, share: tuple[int, int] = (0, 1)
) -> tuple[dict[int, str], dict[str, int]]:
    """Keys of rows that have files, by their place; and the place of each key that is missing. Equal rows share one condition.

    Reads the rows' condition files.

    Args:
        wanted: the rows that will be asked for; None: all.
        share: (k, n): the k-th of n processes, which look up every n-th of them.
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
    """Encodes what the cache lacks. A row is hashed and written while the next one is encoded.

    Args:
        missing: keys, and the places of their rows.
        strict: whether a cache that cannot be written to is refused; else it is said, and rows are left to be encoded when they are used.

    Raises:
        UserError: it is refused, see `ConditionCache.put`.
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
