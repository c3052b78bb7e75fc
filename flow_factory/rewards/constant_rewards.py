"""Warnings about rewards with equal scores within every group, from which nothing is learned."""

import re
from collections import Counter
from collections.abc import Sequence


class ConstantRewards:
    """Counts the epochs in a row in which a reward had one score for all of each group."""

    def __init__(self) -> None:
        self.epochs: Counter[str] = Counter()
        self.warned: set[str] = set()

    def look(self, names: Sequence[str], weights: Sequence[float], differed: Sequence[bool], groups: int) -> str | None:
        """A warning after a reward's first such epoch, and after its 10th, 100th, ... in a row; else None.

        Args:
            differed: whether each reward's scores differed within any group, over all processes.
            groups: the number of groups.
        """
        counted = [name for name, weight in zip(names, weights, strict=True) if weight]
        for name, spoke in zip(names, differed, strict=True):
            self.epochs[name] = 0 if spoke else self.epochs[name] + 1
        silent = [name for name in counted if self.epochs[name]]
        due = [n for n in silent if n not in self.warned or re.fullmatch("10+", str(self.epochs[n]))]
        self.warned |= set(silent)
        if not due:
            return None
        long = max(self.epochs[n] for n in due)
        when = "in this epoch" if long == 1 else f"in the last {long} epochs"
        what = f"reward {', '.join(map(repr, due))}: {when} all samples of each of the {groups} groups had one score"
        return f"{what}, so {'every advantage was 0 and nothing was learned' if silent == counted else 'nothing was learned from it'}"
