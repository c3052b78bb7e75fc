"""Statistics of a data set's rows, collected in the pass that checks them, and of some rows' files."""

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
from flow_factory.data.media import check_media
from flow_factory.data.media_checks import Extent, Kind
from flow_factory.types import Row

KINDS = {str: "text", bool: "truth", int: "number", float: "number", list: "list", dict: "object", type(None): "null", bytes: "bytes"}


@dataclass
class Column:
    """Of one column: the kinds of its values, how many are not null, and the first that is not."""

    kinds: Counter[str] = field(default_factory=Counter)
    example: Any = None

    @property
    def filled(self) -> int:
        return sum(many for kind, many in self.kinds.items() if kind != "null")


class Survey:
    """Called with every row, one after the other."""

    def __init__(self) -> None:
        self.rows, self.columns = 0, dict[str, Column]()
        self.lengths, self._digests = array("q"), array("q")

    def __call__(self, row: Row) -> None:
        self.rows += 1
        self.lengths.append(len(row.prompt))
        self._digests.append(hash(row.prompt))
        self._see("prompt", row.prompt, "text")
        if row.negative_prompt is not None:
            self._see("negative_prompt", row.negative_prompt, "text")
        for name, files in (("images", row.images), ("videos", row.videos)):
            if files:
                self._see(name, files if row.inside else list(files), f"{len(files)} file{'s' * (len(files) > 1)}")
        for name, value in (row.columns.values_of if isinstance(row.columns, Columns) else row.columns).items():
            self._see(name, value, "bytes" if isinstance(value, Deferred) else KINDS.get(type(value), type(value).__name__))

    def _see(self, name: str, value: Any, kind: str) -> None:
        column = self.columns.setdefault(name, Column())
        column.kinds[kind] += 1
        if column.example is None:
            column.example = value

    @property
    def repeated(self) -> int:
        """Rows whose prompt an earlier row has."""
        return self.rows - len(np.unique(np.frombuffer(self._digests, np.int64)))


@dataclass
class Media:
    """What was found of some rows' files."""

    sizes: dict[tuple[str, Kind], Extent] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    """A line for each file that cannot be used."""

    def see(self, rows: Sequence[Row]) -> "Media":
        """Reads the headers of the rows' files."""
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
    """The row's condition files, and its target or pair where that has names of files.

    Args:
        kind: of the target or pair.
    """
    names = (*PAIR, *(TARGET if is_file(row.columns.get(TARGET[0])) else ()))  # it may be a word for a reward
    given = [(value, kind) for name in names if isinstance(value := row.columns.get(name), str)]
    return [*((path, "image") for path in row.images), *((path, "video") for path in row.videos), *given]


def is_file(value: object) -> bool:
    """Whether it has a name's ending."""
    return isinstance(value, str) and bool(re.fullmatch(r"\.\w{2,5}", Path(value).suffix))


def spread(rows: Sequence[Row], most: int) -> Sequence[Row]:
    """At most so many of the rows, evenly spaced, the first among them."""
    return rows[:: max(1, math.ceil(len(rows) / most))]


def summary(values: Sequence[float]) -> str:
    """Least, median and most."""
    least, middle, most = (round(float(v)) for v in np.percentile(np.asarray(values), (0, 50, 100)))
    return f"{least:,}" if least == most else f"{least:,} to {most:,}, median {middle:,}"


def tokens_line(rows: Sequence[Row], count: Callable[[Row], tuple[int, int]], whose: str) -> str:
    """How many tokens prompts have, and how many the encoder cuts.

    Args:
        count: a row -> (tokens that it has, tokens that are taken).
    """
    counted = [count(row) for row in rows]
    takes, cut = counted[0][1], sum(has > most for has, most in counted)
    return f"tokens: {summary([has for has, _ in counted])}; {whose} takes {takes}, which cuts {cut} of {len(counted):,}"


def histogram(sizes: Sequence[tuple[int, int]], most: int = 6) -> list[str]:
    """The commonest sizes, a line each with how many have it."""
    every = Counter(sizes)
    common = every.most_common(most)
    widest = max(len(f"{w} x {h}") for (w, h), _ in common)
    lines = [f"{f'{w} x {h}':<{widest}}  {many:,}" for (w, h), many in common]
    rest = len(sizes) - sum(many for _, many in common)
    return lines + [f"{len(every) - len(common)} other sizes  {rest:,}"] * (rest > 0)
