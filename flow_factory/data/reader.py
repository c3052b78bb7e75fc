"""Reads a data set: `train` and `test`, each `.jsonl` or `.txt`. Imports no torch, so a check is quick."""

import logging
import math
import os
import time
import weakref
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
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
"""Bytes of a line: a data set that is one JSON document is no data set of one row."""
READABLE = "the user that runs this must be able to read it"
EVERY = 60
"""Seconds between two looks at whether a file has changed."""
Look = Callable[[Row], object]
"""Is handed every row once, in order, and raises `UserError` where it is not right."""


def read_rows(
    dataset_dir: Path,
    split: str,
    max_size: int | None = None,
    image_dir: str | Path | None = None,
    video_dir: str | Path | None = None,
    looks: Iterable[Look] = (),
    columns: Mapping[str, str] | None = None,
) -> "RowFile":
    """The rows of `{split}.jsonl` or `{split}.txt` of a folder, or of one such file, numbered from 0; reading stops after `max_size`.

    A line of the .txt is a prompt. A line of the .jsonl is an object with `prompt`, maybe `negative_prompt`, `image` (a file name) or
    `images` (a list of them), `video` or `videos`, and any other columns, which stay with the row. Blank lines are skipped. Equal lines
    stay rows of their own, since a group belongs to a row, not to a text.

    Args:
        image_dir, video_dir: where relative file names start; by default images/ and videos/ in the data set's folder. Whether the files
            are there is for `inspection` to say.
        looks: what else is asked of each row, or found out about all of them: all that needs every row is done in the one pass.
        columns: see `Naming`.

    Raises:
        DataError: no such folder or file, both files, an empty file, or a line that is not as described.
        UserError: what a look raises.
    """
    folder = Path(dataset_dir)
    with file_errors("data.dataset_dir", folder, READABLE, DataError):
        path = folder if folder.suffix in _EXAMPLES and folder.is_file() else _file_of(folder, split)
    require_readable(path, "data.dataset_dir", READABLE, DataError)
    if columns and path.suffix == ".txt":
        raise DataError(f"data.columns: {path} is a prompt a line and has no columns; remove data.columns, or write a .jsonl")
    folders = {"image": Path(image_dir or path.parent / "images"), "video": Path(video_dir or path.parent / "videos")}
    return RowFile(path, Naming(folders, columns or {}, path.parent), max_size, looks)


class RowFile(LazySequence[Row]):
    """The rows of a file. Each line is checked once; what is kept of it is where it stands, and it is read again when its row is asked for.

    A file that another one takes the place of stays what it was for those who have it open, and the run goes on with it. One that is
    written to is noticed: by a warning where it has changed, and by an error where the line that is asked for has.

    Args:
        naming: how its columns become rows.
        most: rows that are read.
        looks: see `read_rows`.
    """

    def __init__(self, path: Path, naming: Naming, most: int | None = None, looks: Iterable[Look] = ()):
        self.path, self.naming, self._jsonl = path, naming, path.suffix == ".jsonl"
        with file_errors("data.dataset_dir", path, READABLE, DataError):
            self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        self._seen, self._next_look = _signs(os.fstat(self._file)), time.monotonic() + EVERY
        numbers, begins, ends, digests = columns = (array("q"), array("q"), array("q"), array("q"))
        looks = tuple(looks)
        for number, begin, end, text in islice(_lines(path, self._file), most):
            row = self._row(len(numbers), number, text)
            for look in looks:
                look(row)
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
        RowError: the line is not what it was.
        """
        self._look()
        where, right = f"{self.path}:{self._numbers[index]}", "put it back and go on with model.resume_path, or begin a run of its own"
        with file_errors(where, self.path, right, RowError):  # a mapped file would end the process where it is cut short
            raw = os.pread(self._file, int(self._ends[index] - self._begins[index]), int(self._begins[index]))
        text = raw.decode("utf-8-sig", "replace").strip()
        if hash(text) != self._digests[index]:
            raise RowError(f"{where}: the line has changed since the run read it; {right}")
        return self._row(index, int(self._numbers[index]), text)

    def _row(self, k: int, number: int, text: str) -> Row:
        where = f"{self.path}:{number}"
        return row_of(k, text, where, self.naming) if self._jsonl else Row(k, text, source=where)

    def _look(self) -> None:
        """Says once that the file is another, or has been written to."""
        if (now := time.monotonic()) < self._next_look:
            return
        self._next_look = now + EVERY
        with suppress(OSError):
            if self._seen != _signs(self.path.stat()):
                self._next_look = math.inf
                logger.warning("%s has changed; this run goes on with the rows that it began with", self.path)


def _signs(stat: os.stat_result) -> tuple[int, int, int]:
    """By which a change of a file is seen."""
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


_EXAMPLES = {".jsonl": EXAMPLE, ".txt": "a prompt a line"}


def _file_of(folder: Path, split: str) -> Path:
    if not folder.is_dir():
        nearest = next(p for p in (folder, *folder.absolute().parents) if p.is_dir())
        what = f"no data set folder {folder}; {nearest} has {listing(nearest)}" if not os.path.lexists(folder) else f"{folder} is no folder"
        raise DataError(f"{what}. data.dataset_dir names a folder with train.jsonl or .txt")
    there = [path for suffix in _EXAMPLES if os.path.lexists(path := folder / f"{split}{suffix}")]
    if len(there) == 2:
        raise DataError(f"{folder} has both {split}.jsonl and {split}.txt: keep the one that is meant")
    if not there:
        wanted = " or ".join(f"{split}{suffix} ({example})" for suffix, example in _EXAMPLES.items())
        raise DataError(f"no {split} split in {folder}, which has {listing(folder)}; it needs {wanted}")
    return there[0]


def listing(folder: Path, most: int = 12) -> str:
    """The first names in a folder, for messages."""
    names = sorted(p.name + "/" * p.is_dir() for p in folder.iterdir() if not p.name.startswith("."))
    return ", ".join(names[:most]) + (f", ... ({len(names)} in all)" if len(names) > most else "") or "nothing in it"


def _lines(path: Path, opened: int) -> Iterator[tuple[int, int, int, str]]:
    """(line number from 1, where it begins and where the next one does, stripped text) of every line that is not blank."""
    end = 0
    with file_errors("data.dataset_dir", path, READABLE, DataError), open(opened, "rb", closefd=False) as file:
        for number, raw in enumerate(iter(lambda: file.readline(LONGEST + 1), b""), start=1):
            begin, end = end, end + len(raw)
            if len(raw) > LONGEST:
                raise DataError(
                    f"{path}:{number}: a line of more than {LONGEST >> 20} MB; a row is a line, and a file of rows no JSON list"
                )
            try:
                text = raw.decode("utf-8-sig").strip()  # files that were joined have marks of byte order inside, too
            except UnicodeDecodeError as error:
                hint = " (it looks like UTF-16)" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
                raise DataError(
                    f"{path}:{number}: not UTF-8 at byte {error.start + 1} of the line{hint}; save the file as UTF-8"
                ) from error
            if "\0" in text:
                raise DataError(f"{path}:{number}: a NUL character (it looks like UTF-16); save the file as UTF-8")
            if text:
                yield number, begin, end, text
