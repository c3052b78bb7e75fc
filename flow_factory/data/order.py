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
"""Keys that keep these uses of the seed independent of all others."""


class EpochGroup(NamedTuple):
    """One group of samples to draw: its number in the epoch, from 0, and its row."""

    number: int
    row: int


class Stream(NamedTuple):
    """An endless order of one data set's rows, permutation after permutation, and how much of it each epoch takes."""

    num_rows: int
    rows_per_epoch: int
    """Rows of an epoch over all data sets."""
    seed: int
    weights: tuple[int, ...] = (1,)
    place: int = 0
    """The index of this data set in `weights`."""
    name: str = ""
    """The name of the data set, part of the seed of its permutations; "" if it is the only one."""

    def begins(self, epoch: int) -> int:
        """How many positions of the stream the epochs before this one take."""
        turns = _turns(self.weights)
        whole, rest = divmod(epoch * self.rows_per_epoch, len(turns))
        return int(whole * (turns == self.place).sum() + (turns[:rest] == self.place).sum())

    def epoch_at(self, position: int) -> int:
        """The epoch that takes this position of the stream."""
        epoch = position * sum(self.weights) // (self.weights[self.place] * self.rows_per_epoch)  # off by less than a row
        while self.begins(epoch) > position:
            epoch -= 1
        while self.begins(epoch + 1) <= position:
            epoch += 1
        return epoch

    def row(self, position: int) -> int:
        """The row at this position."""
        cycle, k = divmod(position, self.num_rows)
        return int(_cycle(self, cycle)[k])


@dataclass(frozen=True)
class Order:
    """Which rows the epochs of a run take. The rows of several data sets are numbered consecutively.

    Each data set's rows come from an endless stream of permutations, so each row comes up once a cycle. An epoch that spans two
    permutations has no row twice either. A row repeats within an epoch only if the epoch takes more rows than there are; it then has
    several groups, so whatever must differ between groups is keyed by the group's number.

    The weights share the groups between several data sets: after any number of epochs each data set has had its share to within one group.
    """

    sizes: tuple[int, ...]
    """The number of rows of each data set."""
    rows_per_epoch: int
    seed: int
    weights: tuple[int, ...] = (1,)
    names: tuple[str, ...] = ("",)

    @property
    def streams(self) -> list[Stream]:
        """One stream for each data set."""
        each = enumerate(zip(self.sizes, self.names, strict=True))
        return [Stream(size, self.rows_per_epoch, self.seed, self.weights, k, name) for k, (size, name) in each]

    def epoch(self, epoch: int) -> list[EpochGroup]:
        """The groups of an epoch; the groups of several data sets are shuffled."""
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
        """The rows that the first `epochs` epochs take."""
        found, start = set[int](), 0
        for stream in self.streams:
            taken = stream.begins(epochs)
            whole = taken >= stream.num_rows  # a whole permutation
            found.update(start + k for k in (range(stream.num_rows) if whole else _cycle(stream, 0)[:taken].tolist()))
            start += stream.num_rows
        return found


@lru_cache(maxsize=8)
def _turns(weights: tuple[int, ...]) -> np.ndarray:
    """The data set of each group, (period,): after any number of groups each data set has had its share to within one group.

    Tijdeman's algorithm for the chairman assignment problem (Discrete Mathematics 32, 1980): among the data sets whose share allows
    another group, the one with the earliest deadline gets it.
    """
    period = sum(weights) // gcd(*weights)
    turns, had = np.zeros(period, np.int64), [0] * len(weights)
    if len(weights) == 1:
        return turns
    total, spare = sum(weights), 2 * len(weights) - 2
    for group in range(period):
        # data set i may have the group if w (group + 1) / W - had >= 1 / spare (its share less what it has had);
        # its deadline is (1 - 1 / spare + had - w group / W) / (w / W); both in integers, as multiples of 1 / (W spare)
        may = [i for i, w in enumerate(weights) if spare * (w * (group + 1) - had[i] * total) >= total]
        first = min(may, key=lambda i: (Fraction(total * (spare * (had[i] + 1) - 1), spare * weights[i]), i))
        turns[group] = first
        had[first] += 1
    return turns


@lru_cache(maxsize=16)
def _cycle(stream: Stream, cycle: int) -> np.ndarray:
    """Permutation (num_rows,) number `cycle` of the stream. Its head has no row that the same epoch took from the previous cycle."""
    first, key = cycle, (stream.num_rows, stream.seed)
    while _carried(stream, first)[0]:
        first -= 1
    order = _permutation(*key, first, name=stream.name)
    for c in range(first + 1, cycle + 1):
        carried, head = _carried(stream, c)
        order = _without(order[stream.num_rows - carried :], _permutation(*key, c, name=stream.name), head)
    return order


def _carried(stream: Stream, cycle: int) -> tuple[int, int]:
    """How many rows of the previous cycle and of this one belong to the epoch that spans their border.

    (0, 0) if an epoch ends at the border, or is longer than the data set, so that it may repeat rows.
    """
    begin = cycle * stream.num_rows
    epoch = stream.epoch_at(begin)
    since, until = stream.begins(epoch), stream.begins(epoch + 1)
    return (begin - since, until - begin) if since < begin and until - since <= stream.num_rows else (0, 0)


def _without(taken: np.ndarray, order: np.ndarray, head: int) -> np.ndarray:
    """`order`, where rows of `taken` among the first `head` are swapped with the next rows that are not taken."""
    clash = np.isin(order, taken)
    there = np.flatnonzero(clash[:head])
    free = head + np.flatnonzero(~clash[head:])[: len(there)]
    order[there], order[free] = order[free], order[there]
    return order


def some_rows(num_rows: int, most: int | None, seed: int) -> Sequence[int]:
    """A random subset of at most `most` rows, ascending; None: all rows. A smaller subset is part of a larger one."""
    if most is None or most >= num_rows:
        return range(num_rows)
    return sorted(_permutation(num_rows, seed, 0, SUBSET)[:most].tolist())


def _permutation(num_rows: int, seed: int, cycle: int, purpose: int = ORDER, name: str = "") -> np.ndarray:
    """A permutation (num_rows,) from the bit generator's raw draws, which are the same in all numpy versions."""
    key = [int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")] if name else []
    raw = np.random.PCG64(np.random.SeedSequence([seed, purpose, cycle, *key])).random_raw(num_rows)
    return np.argsort(raw, kind="stable")
