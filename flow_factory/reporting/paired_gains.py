"""Paired statistics of evaluations: scores per row, and confidence intervals of changes."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from flow_factory.reporting.metrics import read_metrics

FILE = "eval_scores.jsonl"
SURE = 0.95
"""The confidence level of an interval."""


def keep_scores(folder: Path, step: int, rows: Sequence[int], scores: Mapping[str, Sequence[float]], dataset: str = "") -> None:
    """Appends an evaluation's scores: of each reward, one a row in the order of `rows`; a missing one is NaN, and null in the file.

    Args:
        dataset: its name, where several are evaluated.
    """
    known = {name: [value if math.isfinite(value) else None for value in values] for name, values in scores.items()}
    with (folder / FILE).open("a", encoding="utf-8") as file:
        of = {"dataset": dataset} if dataset else {}
        file.write(json.dumps({"step": step, **of, "rows": list(rows), "scores": known}, allow_nan=False) + "\n")


def intervals(folder: Path) -> dict[str, tuple[float, float]]:
    """Metric of a reward, without `eval/` -> the interval of its change from the run's first evaluation to its last.

    Row by row, from the same noise.

    Of the rows that both took. Empty where one of the two was not kept; without the rewards that scored fewer than two rows both times.
    """
    steps = [r["step"] for r in read_metrics(folder / "metrics.jsonl") if any(k.startswith("eval/") for k in r)]
    file = folder / FILE
    kept: dict[int, dict[str, dict[int, float | None]]] = {}
    for record in read_metrics(file) if file.is_file() else ():
        kept.setdefault(record["step"], {}).update(_by_row(record))
    if not steps or min(steps) == max(steps) or not {min(steps), max(steps)} <= kept.keys():
        return {}
    first, last = kept[min(steps)], kept[max(steps)]
    found = {}
    for name in first.keys() & last.keys():
        both = sorted(first[name].keys() & last[name].keys())
        found[name] = interval([first[name][row] for row in both], [last[name][row] for row in both])
    return {name: ends for name, ends in found.items() if ends is not None}


def _by_row(record: Mapping[str, Any]) -> dict[str, dict[int, float | None]]:
    """An evaluation's scores, by metric and row; without `rows` it took all of them."""
    of, rows = f"{record['dataset']}/" if "dataset" in record else "", record.get("rows")
    return {f"{of}reward_{name}_mean": dict(zip(rows or range(len(its)), its, strict=True)) for name, its in record["scores"].items()}


def interval(before: Sequence[float | None], after: Sequence[float | None]) -> tuple[float, float] | None:
    """Student's interval of the mean of the pairs' differences; None for fewer than two pairs."""
    change = np.array([b - a for a, b in zip(before, after, strict=True) if a is not None and b is not None])
    if len(change) < 2:
        return None
    half = stats.t.ppf((1 + SURE) / 2, len(change) - 1) * change.std(ddof=1) / math.sqrt(len(change))
    return float(change.mean() - half), float(change.mean() + half)
