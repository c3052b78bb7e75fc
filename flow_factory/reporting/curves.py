"""The curves of a run: rewards, clipping, gradient norm, times. Needs its `metrics.jsonl` only."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flow_factory.reporting.metrics import read_metrics

Series = dict[int, float]
"""Step -> value; a later value of the same step replaces an earlier one."""
Panel = tuple[str, str, Any, list[str]]
"""Title, unit, drawing function, names of the series."""

BLUE, ORANGE, GREEN, PURPLE, GREY = "#0969da", "#d1570a", "#1a7f37", "#8250df", "#8c959f"
NAMES = {"clip_frac_high": "above the range", "clip_frac_low": "below the range", "kl_div": "KL", "grad_norm": "norm"}
PHASES = {"rollout": BLUE, "reward": PURPLE, "optimise": ORANGE, "eval": GREEN}


def plot_curves(metrics_jsonl: Path, out: Path) -> None:
    """Draws what the run has logged so far: a panel for each reward, then clipping, ratio, KL, gradient norm and time if they were logged.

    Raises:
        FileNotFoundError: no such `metrics.jsonl`.
        ValueError: a broken line, or no metrics at all.
    """
    from matplotlib import rc_context

    series = series_of(read_metrics(metrics_jsonl))
    found = panels(series)
    if not found:
        raise ValueError(f"{metrics_jsonl} has no metrics to draw yet")
    steps = [step for values in series.values() for step in values]
    columns = min(3, len(found))
    rows = -(-len(found) // columns)
    with rc_context({"text.parse_math": False}):  # a reward may be called $x$
        _draw(found, series, steps, (rows, columns), out)


def _draw(panels: Sequence[Panel], series: Mapping[str, Series], steps: Sequence[int], grid: tuple[int, int], out: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    rows, columns = grid
    figure = Figure(figsize=(5.2 * columns, 3.5 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for k, (title, unit, draw, names) in enumerate(panels):
        axes = figure.add_subplot(rows, columns, k + 1)
        draw(axes, {name: series[name] for name in names})
        axes.set_title(title, fontsize=11, fontweight="bold", loc="left")
        axes.set_xlabel("epoch")
        axes.set_xlim(min(steps) - 0.5, max(steps) + 0.5)
        axes.set_ylabel(unit)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8, framealpha=0.8, ncols=4 if draw is _draw_times else 1)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)


def series_of(records: Iterable[Mapping[str, Any]]) -> dict[str, Series]:
    """The values of each metric in the lines of a `metrics.jsonl`."""
    series: dict[str, Series] = {}
    for record in records:
        for name, value in record.items():
            if "/" in name and value is not None:
                series.setdefault(name, {})[record["step"]] = value
    return series


OF_ONE_ALGORITHM = (
    ("Distance of the velocity from the old policy's", "mean square", ["train/policy_shift"]),
    ("Pairs in order", "share", ["train/pair_accuracy"]),
    ("Margin of the pairs", "log-odds", ["train/margin"]),
    ("Weight of the groups", "0 in order, 0.5 at the start", ["train/group_weight"]),
    ("Implicit reward", "difference of errors", ["train/implicit_reward"]),
    ("Log-probability by flow matching", "mean", ["train/matching_log_prob"]),
    (
        "Flow-matching error",
        "mean square",
        [f"train/{n}" for n in ("matching_error", "matching_error_ref", "error_chosen", "error_rejected")],
    ),
)
"""(title, unit, series) of panels that only some algorithms log."""


def panels(series: Mapping[str, Series]) -> list[Panel]:
    """(title, unit, drawing function, names of the series) of each panel that has data."""
    train, evaluation = (
        {(found[1], found[2]) for name in series if (found := re.fullmatch(rf"{where}/([^/]+/|)reward_(.+)_mean", name))}
        for where in ("train", "eval")
    )
    total = ["train/reward_mean"] + ["eval/reward_mean"] * (train == evaluation)  # sums of other rewards do not compare
    several = [("all, weighted", total)] if len(train) != 1 else []
    every = sorted(train | evaluation)
    named = [(f"{of.replace('/', ': ')}{name}", [f"{where}/{of}reward_{name}_mean" for where in ("train", "eval")]) for of, name in every]
    sides = ["train/clip_frac_high", "train/clip_frac_low"]
    clipped = sides if sides[0] in series else ["train/clip_frac"]
    wanted = [(f"Reward: {name}", "mean of the epoch", _draw_reward, names) for name, names in several + named]
    wanted += [
        ("Clipped by the policy ratio", "share of samples", _draw_lines, clipped),
        ("Spread of the policy ratio", "standard deviation", _draw_lines, ["train/ratio_std"]),
        ("KL divergence to the reference", "KL", _draw_lines, ["train/kl_div"]),
        *((title, unit, _draw_lines, names) for title, unit, names in OF_ONE_ALGORITHM),
        ("Gradient norm before clipping", "norm", _draw_lines, ["train/grad_norm"]),
        (_time_title(series), "seconds an epoch", _draw_times, [f"time/{phase}_s" for phase in PHASES]),
    ]
    there = [(title, unit, draw, [n for n in names if n in series]) for title, unit, draw, names in wanted]
    return [panel for panel in there if panel[3]]


def _time_title(series: Mapping[str, Series]) -> str:
    title = "Time"
    if speed := series.get("perf/samples_per_s"):
        title += f": {np.median(list(speed.values())):.3g} samples/s"
    if memory := series.get("perf/peak_memory_gb"):
        title += f", peak {max(memory.values()):.3g} GB"
    return title


def _draw_reward(axes: Any, series: Mapping[str, Series]) -> None:
    for name, values in series.items():
        x, y = arrays(values)
        if name.startswith("eval/"):
            axes.plot(x, y, "D-", color=ORANGE, markersize=5, linewidth=1.2, label=f"evaluation, last {y[-1]:.3g}", zorder=3)
            continue
        window = _window(y)
        axes.plot(x, y, ".", color=BLUE, alpha=0.35 if window > 1 else 1, markersize=5, label="training")
        if window > 1:
            axes.plot(*_smooth(x, y, window), "-", color=BLUE, linewidth=2, label=f"training, mean of {window} epochs")


def _draw_lines(axes: Any, series: Mapping[str, Series]) -> None:
    for (name, values), color in zip(series.items(), (BLUE, ORANGE, PURPLE), strict=False):
        x, y = arrays(values)
        axes.plot(x, y, ".-" if len(y) < 3 else "-", color=color, linewidth=0.8, alpha=0.35 if _window(y) > 1 else 1)
        axes.plot(*_smooth(x, y, _window(y)), "-", color=color, linewidth=1.8, label=f"{plain(name.split('/', 1)[1])}, last {y[-1]:.6g}")
    axes.ticklabel_format(useOffset=False, axis="y")


def _draw_times(axes: Any, series: Mapping[str, Series]) -> None:
    """The phases as stacked steps, one step for each epoch."""
    steps = [step for values in series.values() for step in values]
    span = range(min(steps), max(steps) + 1)
    base = np.zeros(len(span))
    for phase, color in PHASES.items():
        if values := series.get(f"time/{phase}_s"):
            top = base + np.array([values.get(step, 0.0) for step in span])
            axes.stairs(top, np.arange(span.start, span.stop + 1) - 0.5, baseline=base, fill=True, color=color, label=phase)
            base = top
    axes.set_ylim(0, 1.25 * base.max() or 1)  # room for the legend


def arrays(values: Series) -> tuple[np.ndarray, np.ndarray]:
    """The steps in order, and their values."""
    steps = sorted(values)
    return np.array(steps), np.array([values[step] for step in steps])


def _window(y: np.ndarray) -> int:
    """The number of epochs that a smoothed line averages: odd, and 1 if there are too few epochs."""
    return 2 * max(1, len(y) // 24) + 1 if len(y) > 8 else 1


def _smooth(x: np.ndarray, y: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Centred moving mean (n - window + 1,) and its positions. Half-filled windows are left out: their noise looks like a late turn."""
    mean = np.convolve(y, np.full(window, 1 / window), "valid")
    return x[window // 2 :][: len(mean)], mean


def plain(name: str) -> str:
    """A metric's name in plain words."""
    return NAMES.get(name, name.removesuffix("_mean").replace("_", " "))
