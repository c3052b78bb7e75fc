"""Rows with large tensors, for the tests of the cache's files."""

from typing import Any

import torch

from flow_factory.data.packing import SMALL
from flow_factory.types import Cond, Row
from tests.data.rows import same

LARGE = SMALL + 1
"""Bytes of a tensor that does not stay with its row."""


def large(value: int) -> torch.Tensor:
    return torch.full((LARGE,), value, dtype=torch.uint8)


def rows_of(n: int, **given: Any) -> list[Row]:
    return [Row(k, f"row {k}", source=f"train.jsonl:{k + 1}", **given) for k in range(n)]


def encode(row: Row) -> Cond:
    return {"own": large(row.id), "negative": large(255), "small": torch.full((3,), float(row.id))}


def right(cond: Cond, row: Row) -> bool:
    return same(cond, encode(row))
