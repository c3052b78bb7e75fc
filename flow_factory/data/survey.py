"""Statistics of a data set's rows, collected in the pass that checks them, and of a subset's files."""

import math
import re
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from flow_factory.config.data import PAIR, TARGET
from flow_factory.data.columns import Columns, DataError, Deferred
from flow_factory.data.inputs import condition_files, inputs_of
from flow_factory.data.media import check_media
from flow_factory.data.media_checks import Extent, Kind
from flow_factory.types import Row

KINDS = {str: "text", bool: "truth", int: "number", float: "number", list: "list", dict: "object", type(None): "null", bytes: "bytes"}


@dataclass
class Column:
    """Statistics of one column: how many values of each kind it has, and its first value that is not null."""

    kinds: Counter[str] = field(default_factory=Counter)
    example: Any = None

    @property
    def filled(self) -> int:
        return sum(count for kind, count in self.kinds.items() if kind != "null")


class Survey:
    """Collects statistics of rows; call it with each row."""

    def __init__(self) -> None:
        self.rows, self.columns = 0, dict[str, Column]()
        self.lengths, self._digests = array("q"), array("q")

    def __call__(self, row: Row) -> None:
        self.rows += 1
        self.lengths.append(len(row.prompt))
        self._digests.append(hash(row.prompt))
        self._add("prompt", row.prompt, "text")
        if row.negative_prompt is not None:
            self._add("negative_prompt", row.negative_prompt, "text")
        for name, files in (("images", row.images), ("videos", row.videos), *((name, files) for name, _, files in inputs_of(row))):
            if files:
                self._add(name, files if row.inside else list(files), f"{len(files)} file{'s' * (len(files) > 1)}")
        for name, value in (row.columns.values_of if isinstance(row.columns, Columns) else row.columns).items():
            self._add(name, value, "bytes" if isinstance(value, Deferred) else KINDS.get(type(value), type(value).__name__))

    def _add(self, name: str, value: Any, kind: str) -> None:
        column = self.columns.setdefault(name, Column())
        column.kinds[kind] += 1
        if column.example is None:
            column.example = value

    @property
    def repeated(self) -> int:
        """How many rows repeat the prompt of an earlier row."""
        return self.rows - len(np.unique(np.frombuffer(self._digests, np.int64)))


@dataclass
class Media:
    """Sizes of the files of some rows, and which files are unusable."""

    sizes: dict[tuple[str, Kind], Extent] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    """A line for each unusable file."""

    def read(self, rows: Sequence[Row]) -> "Media":
        """Reads the headers of the rows' files; returns itself."""
        for row in rows:
            try:
                files = files_of(row)
            except DataError as error:
                self.wrong.append(str(error))
                continue
            for path, kind in files:
                if (path, kind) not in self.sizes:
                    try:
                        self.sizes[path, kind] = check_media(path, row.source, kind)
                    except DataError as error:
                        self.wrong.append(str(error))
        return self


def files_of(row: Row, kind: Kind = "image") -> list[tuple[str, Kind]]:
    """The row's condition files, and the files of its target or pair.

    Args:
        kind: the kind of the target or pair.
    """
    names = (*PAIR, *(TARGET if is_file(row.columns.get(TARGET[0])) else ()))  # the target may be a text for a reward
    given = [(value, kind) for name in names if isinstance(value := row.columns.get(name), str)]
    return [*condition_files(row), *given]


def is_file(value: object) -> bool:
    """Whether the value is a text that ends like a file name, as in `.png`."""
    return isinstance(value, str) and bool(re.fullmatch(r"\.\w{2,5}", Path(value).suffix))


def spread(rows: Sequence[Row], most: int) -> Sequence[Row]:
    """At most `most` of the rows, evenly spaced, from the first on."""
    return rows[:: max(1, math.ceil(len(rows) / most))]


def summary(values: Sequence[float]) -> str:
    """Minimum, maximum and median, as text."""
    least, median, most = (round(float(v)) for v in np.percentile(np.asarray(values), (0, 50, 100)))
    return f"{least:,}" if least == most else f"{least:,} to {most:,}, median {median:,}"


def tokens_line(rows: Sequence[Row], count: Callable[[Row], tuple[int, int]], encoder: str) -> str:
    """How many tokens prompts have, and how many prompts the encoder truncates.

    Args:
        count: a row -> (its tokens, the most tokens that the encoder takes).
    """
    counts = [count(row) for row in rows]
    limit, cut = counts[0][1], sum(tokens > most for tokens, most in counts)
    return f"tokens: {summary([tokens for tokens, _ in counts])}; {encoder} takes {limit}, which cuts {cut} of {len(counts):,}"


def histogram(sizes: Sequence[tuple[int, int]], most: int = 6) -> list[str]:
    """The most common sizes, one line each with its count."""
    counts = Counter(sizes)
    common = counts.most_common(most)
    widest = max(len(f"{w} x {h}") for (w, h), _ in common)
    lines = [f"{f'{w} x {h}':<{widest}}  {count:,}" for (w, h), count in common]
    rest = len(sizes) - sum(count for _, count in common)
    return lines + [f"{len(counts) - len(common)} other sizes  {rest:,}"] * (rest > 0)
