"""Sequences that compute their items on demand."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import TypeVar, overload

Item = TypeVar("Item", covariant=True)


class LazySequence(Sequence[Item]):
    """A subclass defines `__len__` and `item`. A slice computes nothing yet."""

    @abstractmethod
    def item(self, index: int) -> Item:
        """Computes the item; 0 <= index < len(self)."""

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | Sequence[Item]:
        chosen = range(len(self))[index]
        return self.item(chosen) if isinstance(chosen, int) else Chosen(self, chosen)


class Chosen(LazySequence[Item]):
    """The items of a sequence at the given indices."""

    def __init__(self, items: Sequence[Item], which: Sequence[int]):
        self.items, self.which = items, which

    def __len__(self) -> int:
        return len(self.which)

    def item(self, index: int) -> Item:
        return self.items[self.which[index]]
