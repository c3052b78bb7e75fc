"""Runs whose rows are encoded in windows, and what they have learned."""

from pathlib import Path
from typing import Any

from torch import Tensor

from flow_factory.data.cache_folder import cached_rows
from tests.tiny.run import logged, tiny, trained

SHORT = ("train.max_epochs=3", "eval.eval_freq=3", "eval.num_inference_steps=1", "mixed_precision=bf16")
WINDOW = ("data.encode=window", "data.encode_epochs=1")


def rows_in(cache: Path) -> int:
    return sum(stock.rows for stock in cached_rows(cache))


def done(folder: Path, *overrides: str) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """What a run has learned and said."""
    run = tiny(folder, *SHORT, *overrides)
    run()
    return trained(run), logged(run.folder)
