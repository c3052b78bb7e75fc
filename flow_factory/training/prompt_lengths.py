"""The warning about prompts that the text encoder cuts."""

import logging
from collections.abc import Sequence
from typing import Any

from flow_factory.models.base import ModelAdapter
from flow_factory.models.failures import named_rows
from flow_factory.types import Row
from flow_factory.utils.errors import UserError

logger = logging.getLogger(__name__)

SAMPLE = 1000
"""The number of prompts whose tokens are counted, at most."""


def warn_overlong(adapter: ModelAdapter, rows: Sequence[Row], wanted: Sequence[int], call: dict[str, Any]) -> None:
    """Logs once how many prompts the text encoder cuts, estimated from a sample if there are many.

    Args:
        wanted: indices of the rows that the run uses.

    Raises:
        UserError: the pipeline cannot tokenise a prompt.
    """
    sample = [rows[k] for k in wanted[:: -(-len(wanted) // SAMPLE) or 1]]
    lengths = []
    for row in sample:
        with named_rows([row], adapter, "encode", UserError):
            lengths.append((adapter.tokens(row, call), row))
    cut = [(has, takes, row) for (has, takes), row in lengths if has > takes]
    if cut:
        has, takes, row = max(cut, key=lambda c: c[0])
        logger.warning("%d of %d prompts are longer than the encoder takes (%d tokens) and are truncated; the longest has %d: row %d, %r",
                       len(cut), len(sample), takes, has, row.id, row.prompt[:60])  # fmt: skip
