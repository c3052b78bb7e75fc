"""The curves of a page: which metrics stand in one chart, and their points."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from flow_factory.reporting.curves import Series, arrays, panels, plain, series_of
from flow_factory.reporting.metric_names import explained

MOST = 1500
"""The most points of a line. If there are more, neighbours are averaged."""


def charts(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """`main`: the charts of `curves.png`; `others`: one of each other metric. A chart: title, unit, lines; a line: name, label, x, y."""
    series = series_of(records)
    main = [(title, unit, names) for title, unit, _, names in panels(series)]
    shown = {name for _, _, names in main for name in names}
    others = [(name, explained(name) or "", [name]) for name in sorted(series) if name not in shown]
    return {"main": [_chart(series, *panel) for panel in main], "others": [_chart(series, *panel) for panel in others]}


def _chart(series: Mapping[str, Series], title: str, unit: str, names: list[str]) -> dict[str, Any]:
    return {"title": title, "unit": unit, "lines": [line(name, series[name]) for name in names]}


def line(name: str, values: Series) -> dict[str, Any]:
    """A line: its name, its label in the legend, and at most `MOST` points, in order, with six digits."""
    where, _, rest = name.partition("/")
    label = {"eval": "evaluation", "train": "training"}[where] if where in ("eval", "train") and "reward_" in rest else plain(rest)
    x, y = arrays(values)
    if len(x) > MOST:
        starts = np.linspace(0, len(x), MOST, endpoint=False).astype(int)
        ends = np.append(starts[1:], len(x))
        x, y = x[ends - 1], np.add.reduceat(y, starts) / (ends - starts)
    return {"name": name, "label": label, "x": x.tolist(), "y": [float(f"{value:.6g}") if math.isfinite(value) else None for value in y]}
