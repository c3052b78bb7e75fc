"""Data sets that `datasets` reads: from the hub, or parquet, arrow, csv, json and webdataset files. None of their code is run."""

import logging
import re
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub.errors import HTTPError
from huggingface_hub.utils import logging as hub_logging

from flow_factory.config.data import FORMATS, HUB, LINES, DataConfig
from flow_factory.data.columns import DataError, listed
from flow_factory.data.ledger import Ledger
from flow_factory.utils.errors import FULL
from flow_factory.utils.hub import unreachable
from flow_factory.utils.registry import nearest

logger = logging.getLogger(__name__)

READERS = (*FORMATS.values(), "text", "imagefolder", "videofolder", "cache")
"""The readers of `datasets` that may be used. Its others are formats of other fields, and some of those can run code (pickle)."""
READ_ERRORS: tuple[type[Exception], ...] = (OSError, ValueError, TypeError, KeyError, RuntimeError, tarfile.TarError, HTTPError)
"""The errors that reading of bad files, archives and URLs raises."""


class PreparedDataset(NamedTuple):
    """A data set on this machine's disk."""

    name: str
    splits: tuple[str, ...]
    read: Callable[[str], Any]
    """Returns the `datasets.Dataset` of a split, or of a slice such as `train[:500]`."""


def prepare_dataset(data: DataConfig) -> PreparedDataset:
    """Downloads the data set and converts it to arrow files under `cache_dir`, unless that was done before.

    Raises:
        DataError: it cannot be downloaded or read.
    """
    path = Path(data.dataset_dir)
    signature = (path.stat().st_mtime_ns, path.stat().st_ino) if path.exists() else (0, 0)
    return _prepare(data.dataset_dir, data.subset, str(Path(data.cache_dir) / "tables"), signature)


@lru_cache(maxsize=4)
def _prepare(name: str, subset: str | None, cache_dir: str, signature: tuple[int, int]) -> PreparedDataset:
    """Args:
    signature: changes with the file or folder, so that the cached result is not used then.
    """
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"data.dataset_dir: {name} is read by `datasets`, which is not installed: pip install 'flow-factory[data]'"
        ) from error
    datasets.utils.logging.set_verbosity(datasets.utils.logging.CRITICAL)
    hub_logging.set_verbosity_error()
    datasets.disable_progress_bars()
    path = Path(name)
    for mark in ("state.json", "dataset_dict.json"):
        if (path / mark).is_file():
            return _from_disk(datasets, name)
    builder = (_of_hub if name.startswith(HUB) else _builder)(datasets, name, subset, cache_dir)
    with dataset_errors(name):
        builder.download_and_prepare()
    return PreparedDataset(name, tuple(map(str, builder.info.splits)), lambda split: builder.as_dataset(split=split))


def _from_disk(datasets: Any, name: str) -> PreparedDataset:
    """A data set that `save_to_disk` has written."""
    with dataset_errors(name):
        found = datasets.load_from_disk(name)
    splits = dict(found) if isinstance(found, dict) else {str(found.split or "train"): found}
    return PreparedDataset(name, tuple(splits), lambda split: splits[split_name(split)])


def _builder(datasets: Any, name: str, subset: str | None, cache_dir: str) -> Any:
    """The builder of `datasets` for a data set.

    Raises:
        DataError: there is none.
    """
    path, revision = Path(name), None
    source: dict[str, Any] = {"path": name}
    if name.startswith(HUB):
        source["path"], _, revision = name.partition("@")
    elif path.is_file():
        if (reader := FORMATS.get(path.suffix)) is None:
            raise DataError(f"data.dataset_dir: {name} is a file, but not one of {', '.join(dict.fromkeys((*LINES, *FORMATS)))}")
        source = {"path": reader, "data_files": {"train": name}} | ({"sep": "\t"} if path.suffix == ".tsv" else {})
    else:
        source["path"] = str(path.absolute())  # a relative folder name may equal the name of a reader
    with dataset_errors(name, lambda: _subsets(datasets, source["path"], revision, subset)):
        builder = datasets.load_dataset_builder(**source, name=subset, revision=revision or None, cache_dir=cache_dir)
    reader = type(builder).__module__.rpartition(".")[2]
    if reader not in READERS:
        raise DataError(f"data.dataset_dir: {name} is of the format {reader}; {', '.join(dict.fromkeys(FORMATS.values()))} can be read")
    return builder


def _of_hub(datasets: Any, name: str, subset: str | None, cache_dir: str) -> Any:
    """The builder of a data set of the hub, or of its local copy of the same revision if the hub is unreachable."""
    kept = Ledger(Path(cache_dir) / "hub.jsonl", 1)
    key = name if "@" in name else f"{name}@main"
    if (reason := unreachable()) is None:
        builder = _builder(datasets, name, subset, cache_dir)
        if not _is_copy(builder):
            if kept.known.get(key) != (builder.hash,):
                kept.new[key] = (builder.hash,)
                kept.save()
            return builder
        reason = "the hub does not answer"
    repo, _, revision = name.removeprefix(HUB).partition("@")
    (commit,) = kept.known.get(key, (revision,))
    owner, _, bare = repo.rpartition("/")
    inside = Path(cache_dir, f"{owner}___{datasets.naming.camelcase_to_snakecase(bare)}" if owner else bare)
    copies = [path for path in inside.glob(f"*/*/{commit}") if subset in (None, path.parts[-3])] if commit else []
    if len(copies) != 1:
        found = f"several copies: {listed(path.parts[-3] for path in copies)}; data.subset chooses one" if copies else "no copy of it"
        raise DataError(f"data.dataset_dir: {name}: {reason}, and data.cache_dir has {found}")
    logger.warning("data.dataset_dir: %s: %s; its copy in data.cache_dir is used, of commit %s", name, reason, commit)
    from datasets.packaged_modules.cache.cache import Cache

    config, version = copies[0].parts[-3:-1]
    return Cache(cache_dir, bare, config, version, commit, repo_id=repo)


def _is_copy(builder: Any) -> bool:
    """Whether `datasets` silently fell back to the newest local copy, which may be of another revision."""
    return type(builder).__module__.endswith(".cache")


def _subsets(datasets: Any, path: str, revision: str | None, subset: str | None) -> str | None:
    """The message if `subset` does not exist, or is missing although the data set has several; else None."""
    with dataset_errors(path):
        names = datasets.get_dataset_config_names(path, revision=revision or None)
    if subset in names or (subset is None and len(names) == 1):
        return None
    if subset is None:
        return f"data.subset: {path} has several, choose one of {listed(names)}"
    return f"data.subset: {path} has no {subset!r}, but {listed(names)}.{nearest(subset, names)}"


@contextmanager
def dataset_errors(name: str, otherwise: Callable[[], str | None] = lambda: None) -> Iterator[None]:
    """Turns the errors of `datasets` and its dependencies into one-line `DataError`s.

    Args:
        otherwise: called for a ValueError; returns a better message, or None.

    Raises:
        DataError: the data set cannot be read.
        OSError: the disk is full.
    """
    from datasets.exceptions import DatasetsError
    from pyarrow import ArrowException

    try:
        yield
    except READ_ERRORS + (DatasetsError, ArrowException) as error:
        if (full := next((e for e in _chain(error) if isinstance(e, OSError) and e.errno in FULL), None)) is not None:
            raise full from error
        message = otherwise() if isinstance(error, ValueError) else None
        raise DataError(message or f"data.dataset_dir: {name}: {_reason(error)}") from error


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and its causes."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _reason(error: BaseException) -> str:
    """The most specific message of the error's chain, in one line."""
    first = next((e for e in _chain(error) if str(e).strip() and "error occurred while generating" not in str(e)), error)
    text = re.sub(r"\s*\(Request ID:[^)]*\)|For more information.*", "", " ".join(str(first).split()))
    if isinstance(first, OSError) and first.strerror:
        text = first.strerror
    if "BatchSize must be greater" in text:
        return "a file without rows"
    return text[:400] or type(error).__name__


def split_name(split: str) -> str:
    """The split without a slice: `train` for `train[:500]`."""
    return split.partition("[")[0]
