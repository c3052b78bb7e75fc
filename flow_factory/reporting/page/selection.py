"""Which pictures a page holds: as many as fit, first those of the first and of the last evaluation."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from flow_factory.reporting.page import store
from flow_factory.reporting.page.store import Epoch, Evaluation, KeptSample

MOST = 16 * 2**20
"""Bytes of a page's pictures. At most half of it is for the first and last evaluation together, and a quarter for the groups."""


class Card(NamedTuple):
    """A test row, and its samples in the evaluations that are shown."""

    prompt: str
    shown: list[tuple[str, KeptSample]]
    """(`epoch 5`, sample)."""


class Pictures(NamedTuple):
    """What a page shows of a run."""

    cards: list[Card]
    epochs: list[Epoch]
    """The epochs with their groups, the last epoch first."""
    left_out: str
    """A line about what did not fit; "" if everything did."""


def select(folder: Path, most: int = MOST) -> Pictures:
    """The pictures that fit into `most` bytes.

    Raises:
        store.ReportError: a file of `report/` is damaged.
    """
    found = store.evaluations(folder)
    ends = [store.read(path, Evaluation).samples for path, _ in found[:1] + found[1:][-1:]]
    rows, of_rows = _rows(ends, most // 2)
    epochs, of_groups = _groups(folder, most // 4)
    used = sum(_size(samples[:rows]) for samples in ends) + sum(_size(group.samples) for epoch in epochs for group in epoch.groups)
    chosen = _between(found, most - used)
    cards = cards_of((f"epoch {step}", store.read(path, Evaluation).samples[:rows]) for path, step in chosen)
    parts = [(rows, of_rows, "test rows"), (len(chosen), len(found), "evaluations"), (*of_groups, "groups")]
    summary = ", ".join(f"{some} of {every} {what}" for some, every, what in parts if some < every)
    return Pictures(list(cards.values()), epochs, f"{summary} fit on this page" if summary else "")


def cards_of(evaluations: Iterable[tuple[str, Sequence[KeptSample]]]) -> dict[tuple[int, str], Card]:
    """(number, prompt) of each test row -> its card, of evaluations with their labels."""
    cards: dict[tuple[int, str], Card] = {}
    for label, samples in evaluations:
        for k, sample in enumerate(samples):
            cards.setdefault((k, sample.prompt), Card(sample.prompt, [])).shown.append((label, sample))
    return cards


def _size(samples: Sequence[KeptSample]) -> int:
    return sum(len(sample.src) for sample in samples)


def _rows(evaluations: list[list[KeptSample]], most: int) -> tuple[int, int]:
    """(number of rows of these evaluations that fit, number of all rows)."""
    every, total = max(map(len, evaluations), default=0), 0
    for k in range(every):
        total += sum(_size(samples[k : k + 1]) for samples in evaluations)
        if total > most:
            return max(1, k), every
    return every, every


def _groups(folder: Path, most: int) -> tuple[list[Epoch], tuple[int, int]]:
    """The groups of the last epochs, and (number that fit, number of all)."""
    shown, fit, every, full = [], 0, 0, False
    for path, step in reversed(store.epochs(folder)):
        groups, there = [], store.read(path, Epoch).groups
        every += len(there)
        for group in there:
            most -= _size(group.samples)
            full = full or (most < 0 and fit > 0)
            if not full:
                groups.append(group)
                fit += 1
        shown += [Epoch(step=step, groups=groups)] if groups else []
    return shown, (fit, every)


def _between(found: list[tuple[Path, int]], most: int) -> list[tuple[Path, int]]:
    """The first and the last evaluation, and as many evenly spaced ones between them as fit, by the sizes of their files."""
    inner = found[1:-1]
    largest = max((path.stat().st_size for path, _ in inner), default=1)
    some = min(len(inner), most // largest)
    picked = [inner[(2 * k + 1) * len(inner) // (2 * some)] for k in range(some)]
    return [*found[:1], *picked, *(found[-1:] if len(found) > 1 else [])]
