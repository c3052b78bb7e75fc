"""Paired statistics of evaluations: scores per row, and confidence intervals of changes."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from scipy import stats

from flow_factory.reporting.metrics import evaluations_in, read_metrics, records_of

FILE = "eval_scores.jsonl"
SURE = 0.95
"""The confidence level of an interval."""
Pair = tuple[float | None, float | None]


def keep_scores(
    folder: Path, step: int, rows: Sequence[int], scores: Mapping[str, Sequence[float]], dataset: str = "", contents: Sequence[str] = ()
) -> None:
    """Appends an evaluation's scores: of each reward, one a row in the order of `rows`; a missing one is NaN, and null in the file.

    Args:
        dataset: its name, where several are evaluated.
        contents: of each row its `content_of`. Rows of one number with other contents are no pair.
    """
    known = {name: [value if math.isfinite(value) else None for value in values] for name, values in scores.items()}
    with (folder / FILE).open("a", encoding="utf-8") as file:
        of: dict[str, Any] = {"dataset": dataset} if dataset else {}
        which = {"rows": list(rows), **({"contents": list(contents)} if contents else {})}
        file.write(json.dumps({"step": step, **of, **which, "scores": known}, allow_nan=False) + "\n")


@dataclass
class Kept:
    """What was kept of the evaluation of a data set."""

    rows: dict[int, str | None] = field(default_factory=dict)
    """Row -> its content; None in files of versions that did not keep it."""
    scores: dict[str, dict[int, float | None]] = field(default_factory=dict)
    """Metric -> row -> score."""

    def common(self, other: "Kept") -> list[int]:
        """The rows that both took: of the same number, and so from the same noise, and of the same content."""
        mine, theirs = self.rows, other.rows
        return [row for row in sorted(mine.keys() & theirs.keys()) if None in (mine[row], theirs[row]) or mine[row] == theirs[row]]


@dataclass(frozen=True)
class Comparison:
    """The first evaluation of a run beside its last.

    Where they did not take the same rows of a data set, the means of its rewards are those of the rows that both took, as `rows` is; of its
    other metrics nothing is known before.

    Attributes:
        steps: epochs done at the two; the same where there was but one, and None without any.
        before: metrics without `eval/`; empty where there was but one.
        after: likewise.
        intervals: metric of a reward -> the interval of its change, row by row, from the same noise; without the rewards that scored fewer
            than two rows both times.
        common: data set, "" for the only one -> the number of rows that both took, where they did not take the same; None where that is
            not known, or nothing is kept of each row.
    """

    steps: tuple[int, int] | None
    before: dict[str, float]
    after: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    common: dict[str, int | None]

    @property
    def note(self) -> str:
        """Which rows are compared, if the two did not take the same."""
        each = [f"{name + ': ' if name else ''}{count}" for name, count in sorted(self.common.items()) if count]
        known = [f"before and after are on {', '.join(each)} rows that both evaluated"] if each else []
        lost = ["the first evaluation took other rows, so nothing is known of before"] if None in self.common.values() else []
        none = ", ".join(name for name, count in sorted(self.common.items()) if count == 0)
        if 0 in self.common.values():
            what = "the first and the last evaluation have no rows in common (with the same settings), so no change is given"
            lost.append(f"{none}: {what}" if none else what)
        return "; ".join(known + lost)


def compare(folder: Path, records: Sequence[Mapping[str, Any]] | None = None, until: int | None = None) -> Comparison:
    """The first evaluation in a run's metrics and the last one.

    Args:
        records: of its `metrics.jsonl`, if they are read.
        until: no evaluation after this epoch, except that there is no other one.

    Raises:
        ValueError: a file of the run is damaged.
    """
    evaluations = evaluations_in(records_of(folder) if records is None else records)
    steps = [step for step in sorted(evaluations) if until is None or step <= until] or sorted(evaluations)[:1]
    if len(steps) < 2:
        return Comparison((steps[0], steps[0]) if steps else None, {}, dict(evaluations[steps[0]]) if steps else {}, {}, {})
    before, after = dict(evaluations[steps[0]]), dict(evaluations[steps[-1]])
    kept = _kept(folder)
    first, last = kept.get(steps[0], {}), kept.get(steps[-1], {})
    shared = {within: first[within].common(last[within]) for within in first.keys() & last.keys()}
    pairs = {name: its for within, rows in shared.items() for name, its in _pairs(first[within], last[within], rows).items()}
    common: dict[str, int | None] = {}
    for within in [name.removesuffix("rows") for name in after if re.fullmatch("([^/]+/)?rows", name)]:
        rewards = [name for name in after if re.fullmatch(f"{re.escape(within)}reward_.+_mean", name)]
        of = {name: pairs[name] for name in rewards if name in pairs}
        both = len(shared[within]) if within in shared else None
        if rewards:
            same = _same(before.get(f"{within}rows"), after[f"{within}rows"], both)
        else:
            same = within not in shared or _same_loss(first[within].rows, last[within].rows)
        if same:
            continue
        known = both if of or both == 0 else None
        common[within.removesuffix("/")] = known
        _take(before, after, within, of, known)
    ends = {name: interval([a for a, _ in its], [b for _, b in its]) for name, its in pairs.items()}
    return Comparison((steps[0], steps[-1]), before, after, {name: its for name, its in ends.items() if its is not None}, common)


def _same(before: float | None, after: float, both: int | None) -> bool:
    """Whether two evaluations took the same rows, by their numbers; `both`: took by both, None where that was not kept."""
    return before in (None, after) and both in (None, after)


def _same_loss(first: Mapping[int, str | None], last: Mapping[int, str | None]) -> bool:
    """Whether two evaluations without rewards had the held-out loss of the same rows; versions that kept no contents kept other rows."""
    return first == last or None in first.values() or None in last.values() or not (first and last)


def _take(before: dict[str, float], after: dict[str, float], within: str, pairs: Mapping[str, Sequence[Pair]], both: int | None) -> None:
    """Sets the metrics of a data set to those of the rows that both evaluations took."""
    for name in [name for name in before if name.startswith(within)]:
        del before[name]
    for name, its in pairs.items():
        known = [(a, b) for a, b in its if a is not None and b is not None]
        if known:
            before[name], after[name] = fmean(a for a, _ in known), fmean(b for _, b in known)
    if both:
        before[f"{within}rows"] = after[f"{within}rows"] = both


def _kept(folder: Path) -> dict[int, dict[str, Kept]]:
    """Step -> data set -> what was kept. "" stands for the only data set, `NAME/` for one of several."""
    file = folder / FILE
    kept: dict[int, dict[str, Kept]] = {}
    for record in read_metrics(file) if file.is_file() else ():
        within, scores = f"{record['dataset']}/" if "dataset" in record else "", record["scores"]
        rows = record.get("rows") or range(len(next(iter(scores.values()), ())))  # without `rows` it took all of them
        its = kept.setdefault(record["step"], {}).setdefault(within, Kept())
        its.rows = dict(zip(rows, record.get("contents") or [None] * len(rows), strict=True))
        its.scores |= {f"{within}reward_{name}_mean": dict(zip(rows, values, strict=True)) for name, values in scores.items()}
    return kept


def _pairs(first: Kept, last: Kept, rows: Sequence[int]) -> dict[str, list[Pair]]:
    """The scores before and after of each metric, of these rows."""
    both = {name: (first.scores[name], last.scores[name]) for name in first.scores.keys() & last.scores.keys()}
    return {name: [(a[row], b[row]) for row in rows if row in a and row in b] for name, (a, b) in both.items()}


def interval(before: Sequence[float | None], after: Sequence[float | None]) -> tuple[float, float] | None:
    """Student's interval of the mean of the pairs' differences; None for fewer than two pairs."""
    change = np.array([b - a for a, b in zip(before, after, strict=True) if a is not None and b is not None])
    if len(change) < 2:
        return None
    half = stats.t.ppf((1 + SURE) / 2, len(change) - 1) * change.std(ddof=1) / math.sqrt(len(change))
    return float(change.mean() - half), float(change.mean() + half)
