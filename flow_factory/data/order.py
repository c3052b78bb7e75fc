"""The rows of an epoch and their order: a pure function of the seed and the epoch."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import gcd
from typing import NamedTuple

import numpy as np

ORDER, SUBSET, MIXED = (int.from_bytes(name, "big") for name in (b"rows", b"some", b"mix"))
"""Keep these uses of the seed apart from every other."""


class EpochGroup(NamedTuple):
    """One group of samples to be drawn: the place in the epoch, from 0, and the row that stands there."""

    number: int
    row: int


class Stream(NamedTuple):
    """One data set's rows in an endless order, one permutation after the other, and how much of it each epoch takes."""

    num_rows: int
    rows_per_epoch: int
    """Of all data sets together."""
    seed: int
    weights: tuple[int, ...] = (1,)
    place: int = 0
    """Of this data set among those with these weights."""
    name: str = ""
    """Keeps its permutations apart from those of other data sets; "" of one that is alone."""

    def begins(self, epoch: int) -> int:
        """How many of its rows the epochs before this one take."""
        turns = _turns(self.weights)
        whole, rest = divmod(epoch * self.rows_per_epoch, len(turns))
        return int(whole * (turns == self.place).sum() + (turns[:rest] == self.place).sum())

    def epoch_at(self, position: int) -> int:
        """The epoch that takes this place of the stream."""
        epoch = position * sum(self.weights) // (self.weights[self.place] * self.rows_per_epoch)  # off by less than a row
        while self.begins(epoch) > position:
            epoch -= 1
        while self.begins(epoch + 1) <= position:
            epoch += 1
        return epoch

    def row(self, position: int) -> int:
        """What stands there."""
        cycle, k = divmod(position, self.num_rows)
        return int(_cycle(self, cycle)[k])


@dataclass(frozen=True)
class Order:
    """Which rows the epochs of a run take; the rows of several data sets are numbered one after the other.

    Each data set's rows come from an endless stream, one permutation of it after the other, so that every row comes up once a cycle. An
    epoch that begins in one permutation and ends in the next has no row twice either; only where it takes more rows than there are
    does a row return within an epoch, in a group of its own: key by its number what must differ.

    Groups go to several data sets by their weights: after any number of epochs each has had its share of them to less than one group.
    """

    sizes: tuple[int, ...]
    """Rows of each data set."""
    rows_per_epoch: int
    seed: int
    weights: tuple[int, ...] = (1,)
    names: tuple[str, ...] = ("",)

    @property
    def streams(self) -> list[Stream]:
        """One a data set."""
        each = enumerate(zip(self.sizes, self.names, strict=True))
        return [Stream(size, self.rows_per_epoch, self.seed, self.weights, k, name) for k, (size, name) in each]

    def epoch(self, epoch: int) -> list[EpochGroup]:
        """The groups of an epoch, those of several data sets in a random order."""
        streams, turns, rows = self.streams, _turns(self.weights), list[int]()
        positions, starts = [stream.begins(epoch) for stream in streams], np.cumsum([0, *self.sizes]).tolist()
        for turn in range(epoch * self.rows_per_epoch, (epoch + 1) * self.rows_per_epoch):
            which = int(turns[turn % len(turns)])
            rows.append(starts[which] + streams[which].row(positions[which]))
            positions[which] += 1
        if len(streams) > 1:
            rows = [rows[k] for k in _permutation(len(rows), self.seed, epoch, MIXED)]
        return [EpochGroup(number, row) for number, row in enumerate(rows)]

    def drawn(self, epochs: int) -> set[int]:
        """The rows that so many epochs take."""
        found, start = set[int](), 0
        for stream in self.streams:
            taken = stream.begins(epochs)
            whole = taken >= stream.num_rows  # a whole permutation
            found.update(start + k for k in (range(stream.num_rows) if whole else _cycle(stream, 0)[:taken].tolist()))
            start += stream.num_rows
        return found


@lru_cache(maxsize=8)
def _turns(weights: tuple[int, ...]) -> np.ndarray:
    """(period,) the data set whose turn each group is: after any number of groups each has had its share to less than one.

    Tijdeman's algorithm for the chairman assignment problem (Discrete Mathematics 32, 1980): of those whose share allows another one, the
    turn is of the one that must have it first.
    """
    period = sum(weights) // gcd(*weights)
    turns, had = np.zeros(period, np.int64), [0] * len(weights)
    if len(weights) == 1:
        return turns
    total, spare = sum(weights), 2 * len(weights) - 2
    for group in range(period):
        # of i: the share after this group less what it has had, w (group + 1) / W - had >= 1 / spare, may have it;
        # and the least (1 - 1 / spare + had - w group / W) / (w / W) must have it first; all in whole numbers of 1 / (W spare)
        may = [i for i, w in enumerate(weights) if spare * (w * (group + 1) - had[i] * total) >= total]
        first = min(may, key=lambda i: (Fraction(total * (spare * (had[i] + 1) - 1), spare * weights[i]), i))
        turns[group] = first
        had[first] += 1
    return turns


@lru_cache(maxsize=16)
def _cycle(stream: Stream, cycle: int) -> np.ndarray:
    """Permutation (num_rows,) number `cycle` of the stream, its head free of the rows that the same epoch took from the cycle before."""
    first, key = cycle, (stream.num_rows, stream.seed)
    while _carried(stream, first)[0]:
        first -= 1
    order = _permutation(*key, first, name=stream.name)
    for c in range(first + 1, cycle + 1):
        carried, head = _carried(stream, c)
        order = _without(order[stream.num_rows - carried :], _permutation(*key, c, name=stream.name), head)
    return order


def _carried(stream: Stream, cycle: int) -> tuple[int, int]:
    """How many rows of the cycle before, and of this one, belong to the epoch that is under way when it begins; (0, 0) where an epoch may
    repeat rows, or ends there."""
    begin = cycle * stream.num_rows
    epoch = stream.epoch_at(begin)
    since, until = stream.begins(epoch), stream.begins(epoch + 1)
    return (begin - since, until - begin) if since < begin and until - since <= stream.num_rows else (0, 0)


def _without(taken: np.ndarray, order: np.ndarray, head: int) -> np.ndarray:
    """`order` with the rows of `taken` among its first `head` exchanged for the next ones that are not taken."""
    clash = np.isin(order, taken)
    there = np.flatnonzero(clash[:head])
    free = head + np.flatnonzero(~clash[head:])[: len(there)]
    order[there], order[free] = order[free], order[there]
    return order


def some_rows(num_rows: int, most: int | None, seed: int) -> Sequence[int]:
    """At most so many of the rows, ascending; all for None. Those of a smaller number are among those of a larger one."""
    if most is None or most >= num_rows:
        return range(num_rows)
    return sorted(_permutation(num_rows, seed, 0, SUBSET)[:most].tolist())


def _permutation(num_rows: int, seed: int, cycle: int, purpose: int = ORDER, name: str = "") -> np.ndarray:
    """A permutation (num_rows,) from the bit generator's raw draws, which numpy keeps the same in every version."""
    key = [int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")] if name else []
    raw = np.random.PCG64(np.random.SeedSequence([seed, purpose, cycle, *key])).random_raw(num_rows)
    return np.argsort(raw, kind="stable")
