"""Errors of a pipeline on a row: they name the row's line in the data set, the pipeline's message and its place."""

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from flow_factory.models.base import ModelAdapter
from flow_factory.types import Row
from flow_factory.utils.errors import UserError, lost

FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError, NameError)
"""What pipelines raise when they are called in a way that they do not support."""
OURS, TORCH = str(Path(__file__).parents[1]), str(Path(torch.__file__).parent)


@contextmanager
def named_rows(rows: Sequence[Row], adapter: ModelAdapter, doing: str, kind: type[UserError]) -> Iterator[None]:
    """What fails in here in the pipeline, or in an adapter of the user's own, is one line; an error of the program itself stays what it is.

    Args:
        doing: "encode" or "draw".

    Raises:
        UserError: of the given kind; the message has the rows' lines, and where in the pipeline it failed.
    """
    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except (*FAILURES, ArithmeticError, AssertionError, ImportError) as error:
        if lost(error) or not theirs(error):
            raise
        where = ", ".join(dict.fromkeys(row.source for row in rows))
        these = "this row" if len(rows) == 1 else "these rows"
        raise kind(f"{where}: {type(adapter.pipe).__name__} cannot {doing} {these}: {reason(error)}") from error


def theirs(error: BaseException) -> bool:
    """Whether it was raised by other code than this program's, or by torch at its bidding."""
    last = next((f for f in reversed(traceback.extract_tb(error.__traceback__)) if not f.filename.startswith(TORCH)), None)
    return last is not None and not last.filename.startswith(OURS)


def reason(failure: BaseException) -> str:
    """Its first line, and where in the pipeline or in the user's own adapter it was raised."""
    first = next(iter(str(failure).strip().splitlines()), type(failure).__name__)
    frames = [f for f in traceback.extract_tb(failure.__traceback__) if not f.filename.startswith((TORCH, OURS))]
    return f"{first} ({Path(frames[-1].filename).name}:{frames[-1].lineno}, in {frames[-1].name})" if frames else first
