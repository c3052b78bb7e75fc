"""Opens a split of a data set, with our own reader of .jsonl and .txt or with Hugging Face `datasets`, see `builders`."""

import logging
import os
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from flow_factory.config.data import FORMATS, HUB, LINES, DataConfig
from flow_factory.data.builders import dataset_errors, prepare_dataset, split_name
from flow_factory.data.columns import DataError, Naming, listed
from flow_factory.data.embedded import Store
from flow_factory.data.reader import RowCheck, read_rows
from flow_factory.types import Row
from flow_factory.utils.registry import nearest

logger = logging.getLogger(__name__)

LOOKED_AT = 10_000
"""How many files of a folder are searched for one of `FORMATS`."""


def open_split(data: DataConfig, split: str, most: int | None = None, checks: Iterable[RowCheck] = ()) -> Sequence[Row]:
    """The rows of a split; see `read_rows`, `open_table`."""
    if is_table(data):
        return open_table(data, split, most, checks)
    if data.subset is not None:
        raise DataError(f"data.subset: {data.dataset_dir} is a data set of .jsonl or .txt, which has no subsets; remove the key")
    return read_rows(Path(data.dataset_dir), split, most, data.image_dir, data.video_dir, checks, data.columns, data.audio_dir)


def has_split(data: DataConfig, split: str) -> bool:
    """Whether the data set has this split; see `has_table`."""
    return has_table(data, split) if is_table(data) else any(os.path.lexists(Path(data.dataset_dir) / f"{split}{end}") for end in LINES)


def is_table(data: DataConfig) -> bool:
    """Whether `datasets` reads the data set. A folder with .jsonl or .txt files of the splits is read by `reader.read_rows` instead."""
    path = Path(data.dataset_dir)
    if data.dataset_dir.startswith(HUB):
        return True
    if path.is_file():
        return path.suffix not in LINES
    if not path.is_dir() or any(os.path.lexists(path / f"{split}{end}") for split in (data.train_split, data.test_split) for end in LINES):
        return False
    names = (name for _, _, files in os.walk(path) for name in files)
    return any(Path(name).suffix in FORMATS for name, _ in zip(names, range(LOOKED_AT), strict=False))


def has_table(data: DataConfig, split: str) -> bool:
    """Whether the data set has this split.

    Raises:
        DataError: the user named a test split that does not exist, or the data set cannot be read.
    """
    found = prepare_dataset(data)
    there = split_name(split) in found.splits
    if not there and "test_split" in data.model_fields_set:
        raise DataError(f"data.test_split: {found.name} has no split {split!r}, but {listed(found.splits)}")
    if not there and (others := tuple(name for name in found.splits if name != split_name(data.train_split))):
        _warn_once(f"data.test_split: {found.name} has no split {split!r}, and nothing is evaluated; it has {listed(others)}")
    return there


@lru_cache
def _warn_once(line: str) -> None:
    logger.warning("%s", line)


def open_table(data: DataConfig, split: str, most: int | None = None, checks: Iterable[RowCheck] = ()) -> Sequence[Row]:
    """The rows of a split that `datasets` reads, a `Table`.

    Raises:
        DataError: the data set cannot be read, has no such split, or has a row that `Table` refuses.
    """
    from flow_factory.data.table import Table

    found = prepare_dataset(data)
    if split_name(split) not in found.splits:
        key = "data.train_split" if split == data.train_split else "data.test_split"
        near = nearest(split, list(found.splits))
        raise DataError(f"{key}: {found.name} has no split {split!r}, but {listed(found.splits)}.{near}")
    with dataset_errors(found.name):
        table = found.read(split).data.table
    several = len(found.splits) > 1 or data.dataset_dir.startswith(HUB) or split != "train"
    where = f"{found.name}: split {split}" if several else found.name
    folders = {"image": Path(data.image_dir), "video": Path(data.video_dir), "audio": Path(data.audio_dir)}
    naming = Naming(folders, data.columns)
    return Table(table, where, naming, Store(Path(data.cache_dir) / "media"), most, checks)
