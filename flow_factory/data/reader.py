"""Reads a split of a data set from a `.jsonl` or `.txt` file. Imports no torch, so that a check is quick."""

import logging
import math
import os
import time
import weakref
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

import numpy as np

from flow_factory.data.columns import EXAMPLE, Naming
from flow_factory.data.columns import DataError as DataError
from flow_factory.data.lines import row_of
from flow_factory.types import Row
from flow_factory.utils.errors import RowError, file_errors
from flow_factory.utils.files import require_readable
from flow_factory.utils.lazy import LazySequence

logger = logging.getLogger(__name__)

LONGEST = 1 << 24
"""The most bytes of a line. A longer one is probably a whole data set that was written as one JSON document."""
READABLE = "the user that runs this must be able to read it"
CHANGE_CHECK_S = 60
"""Seconds between two checks whether a file has changed."""
RowCheck = Callable[[Row], object]
"""Called with each row once, in order. It raises `UserError` for a bad row, or collects statistics."""


def read_rows(
    dataset_dir: Path,
    split: str,
    max_size: int | None = None,
    image_dir: str | Path | None = None,
    video_dir: str | Path | None = None,
    checks: Iterable[RowCheck] = (),
    columns: Mapping[str, str] | None = None,
    audio_dir: str | Path | None = None,
) -> "RowFile":
    """The rows of `{split}.jsonl` or `{split}.txt` in a folder, or of one such file, numbered from 0; reading stops after `max_size`.

    A line of a .txt is a prompt. A line of a .jsonl is an object with `prompt`, optionally `negative_prompt`, `image` (a file name) or
    `images` (a list of them), `video` or `videos`, and any other columns, which are kept in the row. Blank lines are skipped. Equal lines
    stay separate rows, since a group belongs to a row, not to a text.

    Args:
        image_dir, video_dir, audio_dir: the folders of relative file names; by default images/, videos/ and audios/ in the data set's
            folder. `inspection` checks the files.
        checks: called with each row, so that everything that needs all rows is done in one pass.
        columns: see `Naming`.

    Raises:
        DataError: no such folder or file, both files, an empty file, or a line in another format.
        UserError: from a check.
    """
    folder = Path(dataset_dir)
    with file_errors("data.dataset_dir", folder, READABLE, DataError):
        path = folder if folder.suffix in _EXAMPLES and folder.is_file() else _file_of(folder, split)
    require_readable(path, "data.dataset_dir", READABLE, DataError)
    if columns and path.suffix == ".txt":
        raise DataError(f"data.columns: {path} has one prompt a line and no columns; remove data.columns, or write a .jsonl")
    given = {"image": image_dir, "video": video_dir, "audio": audio_dir}
    folders = {kind: Path(folder or path.parent / f"{kind}s") for kind, folder in given.items()}
    return RowFile(path, Naming(folders, columns or {}, path.parent), max_size, checks)


class RowFile(LazySequence[Row]):
    """The rows of a file. Each line is checked once; only its offset and hash stay in memory, and it is read again on access.

    If the file is replaced, the run goes on with the old one, which stays open. If it is written to, a warning says so, and an access to
    a changed line raises an error.

    Args:
        naming: how its columns become rows.
        most: the most rows that are read.
        checks: see `read_rows`.
    """

    def __init__(self, path: Path, naming: Naming, most: int | None = None, checks: Iterable[RowCheck] = ()):
        self.path, self.naming, self._jsonl = path, naming, path.suffix == ".jsonl"
        with file_errors("data.dataset_dir", path, READABLE, DataError):
            self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        self._signature, self._next_check = _signature(os.fstat(self._file)), time.monotonic() + CHANGE_CHECK_S
        numbers, begins, ends, digests = columns = (array("q"), array("q"), array("q"), array("q"))
        checks = tuple(checks)
        for number, begin, end, text in islice(_lines(path, self._file), most):
            row = self._row(len(numbers), number, text)
            for check in checks:
                check(row)
            numbers.append(number)
            begins.append(begin)
            ends.append(end)
            digests.append(hash(text))
        if not numbers:
            raise DataError(f"{path}: no line with a prompt in it; write {_EXAMPLES[path.suffix]}")
        self._numbers, self._begins, self._ends, self._digests = (np.frombuffer(column, np.int64) for column in columns)
        if repeated := len(self) - len(np.unique(self._digests)):
            logger.info("%s: %d of %d rows repeat an earlier line; each stays a row of its own", path, repeated, len(self))

    def __len__(self) -> int:
        return len(self._numbers)

    def item(self, index: int) -> Row:
        """Raises:
        RowError: the line has changed since the run began.
        """
        self._warn_if_changed()
        where, right = f"{self.path}:{self._numbers[index]}", "restore it and resume with model.resume_path, or begin a new run"
        with file_errors(where, self.path, right, RowError):  # a memory-mapped file that is truncated would kill the process
            raw = os.pread(self._file, int(self._ends[index] - self._begins[index]), int(self._begins[index]))
        text = raw.decode("utf-8-sig", "replace").strip()
        if hash(text) != self._digests[index]:
            raise RowError(f"{where}: the line has changed since the run read it; {right}")
        return self._row(index, int(self._numbers[index]), text)

    def _row(self, k: int, number: int, text: str) -> Row:
        where = f"{self.path}:{number}"
        return row_of(k, text, where, self.naming) if self._jsonl else Row(k, text, source=where)

    def _warn_if_changed(self) -> None:
        """Warns once if the file was replaced or written to."""
        if (now := time.monotonic()) < self._next_check:
            return
        self._next_check = now + CHANGE_CHECK_S
        with suppress(OSError):
            if self._signature != _signature(self.path.stat()):
                self._next_check = math.inf
                logger.warning("%s has changed; this run goes on with the rows that it began with", self.path)


def _signature(stat: os.stat_result) -> tuple[int, int, int]:
    """Changes when the file is replaced or written to."""
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


_EXAMPLES = {".jsonl": EXAMPLE, ".txt": "a prompt a line"}


def _file_of(folder: Path, split: str) -> Path:
    if not folder.is_dir():
        above = next(p for p in (folder, *folder.absolute().parents) if p.is_dir())
        missing = not os.path.lexists(folder)
        what = f"no data set folder {folder}; {above} has {listing(above)}" if missing else f"{folder} is not a folder"
        raise DataError(f"{what}.{_meant(folder) if missing else ''} data.dataset_dir names a folder with train.jsonl or .txt")
    paths = [path for suffix in _EXAMPLES if os.path.lexists(path := folder / f"{split}{suffix}")]
    if len(paths) == 2:
        raise DataError(f"{folder} has both {split}.jsonl and {split}.txt: keep only one of them")
    if not paths:
        expected = " or ".join(f"{split}{suffix} ({example})" for suffix, example in _EXAMPLES.items())
        raise DataError(f"no {split} split in {folder}, which has {listing(folder)}; it needs {expected}")
    return paths[0]


def _meant(folder: Path) -> str:
    """ " Did you mean 'x'?" if a folder or a file of rows beside it has a similar name, else an empty string."""
    beside = folder.parent.iterdir() if folder.parent.is_dir() else ()
    close = get_close_matches(folder.name, [p.name for p in beside if p.is_dir() or p.suffix in _EXAMPLES], n=1)
    return f" Did you mean {str(folder.with_name(close[0]))!r}?" if close else ""


def listing(folder: Path, most: int = 12) -> str:
    """The first names in a folder, for messages."""
    names = sorted(p.name + "/" * p.is_dir() for p in folder.iterdir() if not p.name.startswith("."))
    return ", ".join(names[:most]) + (f", ... ({len(names)} in all)" if len(names) > most else "") or "nothing in it"


def _lines(path: Path, opened: int) -> Iterator[tuple[int, int, int, str]]:
    """(line number from 1, offset of the line, offset of the next line, stripped text) of every line that is not blank."""
    end = 0
    with file_errors("data.dataset_dir", path, READABLE, DataError), open(opened, "rb", closefd=False) as file:
        for number, raw in enumerate(iter(lambda: file.readline(LONGEST + 1), b""), start=1):
            begin, end = end, end + len(raw)
            if len(raw) > LONGEST:
                raise DataError(
                    f"{path}:{number}: a line of more than {LONGEST >> 20} MB; each row must be one line, not an item of a JSON list"
                )
            try:
                text = raw.decode("utf-8-sig").strip()  # concatenated files have byte order marks inside, too
            except UnicodeDecodeError as error:
                hint = " (it looks like UTF-16)" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
                raise DataError(
                    f"{path}:{number}: not UTF-8 at byte {error.start + 1} of the line{hint}; save the file as UTF-8"
                ) from error
            if "\0" in text:
                raise DataError(f"{path}:{number}: a NUL character (it looks like UTF-16); save the file as UTF-8")
            if text:
                yield number, begin, end, text
