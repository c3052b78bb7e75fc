"""Rows of an arrow table of `datasets`: memory-mapped, checked once in batches; each row is built on access."""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flow_factory.data.columns import DataError, Naming, listed
from flow_factory.data.embedded import Cell, Store, plain
from flow_factory.data.reader import RowCheck
from flow_factory.types import Row
from flow_factory.utils.lazy import LazySequence
from flow_factory.utils.registry import nearest

VALUES = 16_000
"""The most cells that are converted to Python values at once, since a table may have thousands of columns."""
PROMPT_NAMES = ("caption", "text", "txt", "prompt_text", "instruction", "description", "query")
"""Common names of a prompt column."""


class Table(LazySequence[Row]):
    """The rows of a table, numbered from 0 as `datasets` numbers them.

    The pass that checks every row does not read columns with bytes (images, videos); it only counts their files, see `Files`.

    Args:
        where: the table's source, for messages: `path` or `hf://...: split train`.
        most: the most rows that are read.
        checks: see `reader.read_rows`.

    Raises:
        DataError: a column that `data.columns` names is missing, or `Naming.row` refuses a row.
        UserError: from a check.
    """

    def __init__(
        self, table: pa.Table, where: str, naming: Naming, store: Store, most: int | None = None, checks: Iterable[RowCheck] = ()
    ):  # fmt: skip
        self.where, self.naming, self.store, self.names = where, naming, store, table.column_names
        self._require_columns()
        self._heavy = {column.name for column in table.schema if _has_bytes(column.type)}
        self._batches = (table if most is None else table.slice(0, most)).to_batches()
        self._ends = np.cumsum([0, *(batch.num_rows for batch in self._batches)])
        if not len(self):
            raise DataError(f"{where}: it has no rows")
        checks = tuple(checks)
        for k, columns in enumerate(self._all()):
            row = naming.row(k, columns, self._place(k))
            for check in checks:
                check(row)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def item(self, index: int) -> Row:
        n = int(np.searchsorted(self._ends, index, "right")) - 1
        (columns,) = self._rows(self._batches[n].slice(index - int(self._ends[n]), 1), index)
        return self.naming.row(index, columns, self._place(index))

    def _place(self, k: int) -> str:
        return f"{self.where}{',' if '://' in self.where else ':'} row {k}"

    def _require_columns(self) -> None:
        """Reports what would be wrong with every row once, for the table."""
        names = self.names
        if len(set(names)) < len(names):
            raise DataError(f"{self.where}: two columns are called {next(n for n in names if names.count(n) > 1)!r}; rename one")
        for ours, theirs in self.naming.columns.items():
            if theirs not in names and theirs.partition(".")[0] not in names:
                near = nearest(theirs, names)
                raise DataError(f"{self.where}: data.columns.{ours}: no column {theirs!r}.{near} There are {listed(names)}")
        if "prompt" not in {*names, *self.naming.columns}:
            guess = next((name for name in (*PROMPT_NAMES, *names) if name in names), "caption")
            raise DataError(
                f"{self.where}: no column 'prompt' among {listed(names)}; say which one it is, as in data.columns: {{prompt: {guess}}}"
            )

    def _all(self) -> Iterator[dict[str, Any]]:
        """The columns of every row."""
        most = max(1, VALUES // max(1, len(self.names)))
        for start, batch in zip(self._ends, self._batches, strict=False):
            for k in range(0, batch.num_rows, most):
                yield from self._rows(batch.slice(k, most), int(start) + k)

    def _rows(self, batch: pa.RecordBatch, start: int) -> Iterator[dict[str, Any]]:
        """The columns of consecutive rows, from row number `start` on."""
        values = [self._cells(batch.column(n), name, start) for n, name in enumerate(self.names)]
        return (dict(zip(self.names, row, strict=True)) for row in zip(*values, strict=True))

    def _cells(self, array: pa.Array, name: str, start: int) -> list[Any]:
        if name not in self._heavy:
            values = self._values(array, name, start)
            return values if _is_plain(array.type) else [plain(value, self._place(k), name) for k, value in enumerate(values, start)]
        valid, lengths = array.is_valid().to_pylist(), [None] * len(array)
        if pa.types.is_list(array.type) or pa.types.is_large_list(array.type) or pa.types.is_fixed_size_list(array.type):
            lengths = pc.list_value_length(array).to_pylist()
        return [
            Cell(partial(_value, array, k), lengths[k], self.store, self._place(start + k), name) if valid[k] else None
            for k in range(len(array))
        ]

    def _values(self, array: pa.Array, name: str, start: int) -> list[Any]:
        """Raises:
        DataError: a text is not UTF-8; the message names the row.
        """
        try:
            return array.to_pylist()
        except UnicodeDecodeError:
            return [self._text(array, k, name, start) for k in range(len(array))]

    def _text(self, array: pa.Array, k: int, name: str, start: int) -> Any:
        try:
            return array[k].as_py()
        except UnicodeDecodeError as error:
            what = f"{name!r} is not UTF-8 at byte {error.start + 1} (half of a character, or another encoding)"
            raise DataError(f"{self._place(start + k)}: {what}; write it as UTF-8") from error


def _value(array: pa.Array, k: int) -> Any:
    return array[k].as_py()


def _is_plain(kind: pa.DataType) -> bool:
    """Whether its values become `str`, numbers or `bool` in Python."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_primitive(kind) and not pa.types.is_temporal(kind)


def _has_bytes(kind: pa.DataType) -> bool:
    """Whether the type has bytes, at any depth."""
    if pa.types.is_struct(kind):
        return any(_has_bytes(kind.field(n).type) for n in range(kind.num_fields))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _has_bytes(kind.value_type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)
