"""Which rows an epoch takes, in which order: a pure function of the seed and the epoch."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

ORDER, SUBSET = (int.from_bytes(name, "big") for name in (b"rows", b"some"))
"""Keep these uses of the seed apart from every other."""


class Slot(NamedTuple):
    """One group of samples to be drawn: the place in the epoch, from 0, and the row that stands there."""

    slot: int
    row: int


def rows_of_epoch(num_rows: int, rows_per_epoch: int, seed: int, epoch: int) -> list[Slot]:
    """The slots of the epoch.

    The rows come from an endless stream, one permutation of the data set after the other, so that every row comes up once a cycle. An
    epoch that begins in one permutation and ends in the next has no row twice either; only where `rows_per_epoch` exceeds `num_rows`
    does a row return within an epoch, in a slot of its own: key by slot what must differ.
    """
    stream = (divmod(epoch * rows_per_epoch + slot, num_rows) for slot in range(rows_per_epoch))
    return [Slot(slot, int(_cycle(num_rows, rows_per_epoch, seed, c)[k])) for slot, (c, k) in enumerate(stream)]


def rows_drawn(num_rows: int, rows_per_epoch: int, seed: int, epochs: int) -> set[int]:
    """The rows that so many epochs draw."""
    if epochs * rows_per_epoch >= num_rows:  # a whole permutation
        return set(range(num_rows))
    return set(_cycle(num_rows, rows_per_epoch, seed, 0)[: epochs * rows_per_epoch].tolist())


@lru_cache(maxsize=8)
def _cycle(num_rows: int, rows_per_epoch: int, seed: int, cycle: int) -> np.ndarray:
    """Permutation (num_rows,) number `cycle` of the stream, its head free of the rows that the same epoch took from the cycle before."""
    first = cycle
    while _carried(num_rows, rows_per_epoch, first):
        first -= 1
    order = _permutation(num_rows, seed, first)
    for c in range(first + 1, cycle + 1):
        carried = _carried(num_rows, rows_per_epoch, c)
        order = _without(order[num_rows - carried :], _permutation(num_rows, seed, c), rows_per_epoch - carried)
    return order


def _carried(num_rows: int, rows_per_epoch: int, cycle: int) -> int:
    """How many slots of the cycle before belong to the epoch that is under way when `cycle` begins; 0 where an epoch may repeat rows."""
    return cycle * num_rows % rows_per_epoch if rows_per_epoch <= num_rows else 0


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


def _permutation(num_rows: int, seed: int, cycle: int, purpose: int = ORDER) -> np.ndarray:
    """A permutation (num_rows,) from the bit generator's raw draws, which numpy keeps the same in every version."""
    raw = np.random.PCG64(np.random.SeedSequence([seed, purpose, cycle])).random_raw(num_rows)
    return np.argsort(raw, kind="stable")
