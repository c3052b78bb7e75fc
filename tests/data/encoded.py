"""Rows encoded by way of a cache."""

from collections.abc import Callable, Iterable, Sequence

from flow_factory.data.cache import ConditionCache
from flow_factory.data.conditions import Conditions, encode_missing, look_up
from flow_factory.types import Cond, Row
from flow_factory.utils.terminal import bar


def encode_rows(
    rows: Sequence[Row], encode: Callable[[Row], Cond], cache: ConditionCache, progress: bool = True, wanted: Iterable[int] | None = None,
    share: tuple[int, int] = (0, 1), strict: bool = True,
) -> Conditions:  # fmt: skip
    """The condition of each row, as a run that encodes all rows at its start has it; see `look_up` and `encode_missing`."""
    keys, missing = look_up(rows, cache, progress, wanted, share)
    encode_missing(bar(missing.items(), "encoding rows", "row", progress), rows, encode, cache, strict)
    return Conditions(cache, rows, encode, keys)
