"""Joins the rows of several data sets, and what belongs to each row, into one sequence."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import TypeVar

from flow_factory.types import Row
from flow_factory.utils.lazy import LazySequence

Item = TypeVar("Item", covariant=True)


class Named(LazySequence[Row]):
    """The rows of one data set; each row carries the data set's name.

    Args:
        first: the id of its first row. Rows of several data sets are numbered consecutively.
    """

    def __init__(self, rows: Sequence[Row], name: str, first: int = 0):
        self.rows, self.name, self.first = rows, name, first

    def __len__(self) -> int:
        return len(self.rows)

    def item(self, index: int) -> Row:
        return replace(self.rows[index], id=self.first + index, dataset=self.name)


class Joined(LazySequence[Item]):
    """Several sequences, concatenated without copying."""

    def __init__(self, parts: Iterable[Sequence[Item]]):
        self.parts = tuple(parts)
        self.starts = tuple(accumulate(map(len, self.parts), initial=0))

    def __len__(self) -> int:
        return self.starts[-1]

    def item(self, index: int) -> Item:
        part = bisect_right(self.starts, index) - 1
        return self.parts[part][index - self.starts[part]]


def joined(parts: Sequence[Sequence[Item]]) -> Sequence[Item]:
    """Concatenates the sequences; a single sequence is returned unchanged."""
    return parts[0] if len(parts) == 1 else Joined(parts)


def parts_of(rows: Sequence[Item]) -> tuple[Sequence[Item], ...]:
    """The sequences that `joined` concatenated."""
    return rows.parts if isinstance(rows, Joined) else (rows,)


def sizes_of(rows: Sequence[object]) -> tuple[int, ...]:
    """The number of rows of each data set."""
    return tuple(map(len, parts_of(rows)))


def dataset_of(rows: Sequence[Row], row: int) -> str:
    """The name of a row's data set, without reading the row."""
    parts = parts_of(rows)
    part = parts[bisect_right(list(accumulate(map(len, parts))), row)]
    return part.name if isinstance(part, Named) else ""
