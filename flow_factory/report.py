"""What a run leaves for its user: grids of pictures, curves, and a summary. Needs a run's folder only, not the run."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flow_factory.metrics import read_metrics
from flow_factory.pictures import before_after_sheet, contact_sheet
from flow_factory.types import Sample

Series = dict[int, float]
"""Step -> value; a later value of the same step replaces an earlier one."""
Panel = tuple[str, str, Any, list[str]]
"""Title, unit, drawing function, names of the series."""

BLUE, ORANGE, GREEN, PURPLE, GREY = "#0969da", "#d1570a", "#1a7f37", "#8250df", "#8c959f"
NAMES = {"clip_frac_high": "above the range", "clip_frac_low": "below the range", "kl_div": "KL", "grad_norm": "norm"}
PHASES = {"rollout": BLUE, "reward": PURPLE, "optimise": ORANGE, "eval": GREEN}


def save_grid(samples: Sequence[Sample], path: Path, columns: int = 8) -> None:
    """Writes a contact sheet (PNG by the suffix): each picture, and under it its prompt and rewards."""
    path.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(samples, columns).save(path)


def save_before_after(
    before: Sequence[Sample], after: Sequence[Sample], path: Path, columns: int = 4, weights: Mapping[str, float] | None = None
) -> None:
    """Writes the pairs of pictures before and after training, marked green where the weighted sum of rewards rose, red where it fell.

    Raises:
        ValueError: the two are not samples of the same prompts in the same order.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    before_after_sheet(before, after, columns, weights).save(path)


def plot_curves(metrics_jsonl: Path, out: Path) -> None:
    """Draws what the run has logged so far: a panel a reward, then clipping, ratio, KL, gradient norm and time, where there are any.

    Raises:
        FileNotFoundError: no such `metrics.jsonl`.
        ValueError: a broken line, or no metrics at all.
    """
    from matplotlib import rc_context

    series = _series(read_metrics(metrics_jsonl))
    panels = _panels(series)
    if not panels:
        raise ValueError(f"{metrics_jsonl} has no metrics to draw yet")
    steps = [step for values in series.values() for step in values]
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    with rc_context({"text.parse_math": False}):  # a reward may be called $x$
        _draw(panels, series, steps, (rows, columns), out)


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


def eval_metrics(metrics_jsonl: Path) -> tuple[dict[str, float], dict[str, float]]:
    """The metrics of the first and of the last evaluation, `eval/` taken off their names; the first is empty where there was but one."""
    evaluations: dict[int, dict[str, float]] = {}
    for record in read_metrics(metrics_jsonl):
        found = {k.removeprefix("eval/"): v for k, v in record.items() if k.startswith("eval/") and v is not None}
        if found:
            evaluations.setdefault(record["step"], {}).update(found)
    order = sorted(evaluations)
    return (evaluations[order[0]] if len(order) > 1 else {}, evaluations[order[-1]] if order else {})


def nothing_learned(metrics_jsonl: Path, rewards: Sequence[str]) -> list[str]:
    """The line of a run in none of whose epochs a reward told the samples of a group apart."""
    shares = [r["train/zero_variance_share"] for r in read_metrics(metrics_jsonl) if "train/zero_variance_share" in r]
    if not shares or any(share != 1 for share in shares):
        return []
    return [f"nothing was learned from {', '.join(rewards)}: in every epoch all samples of a group had the same score"]


def write_summary(
    path: Path,
    title: str,
    evaluations: tuple[Mapping[str, float], Mapping[str, float]],
    files: Mapping[str, Path],
    next_steps: Mapping[str, str],
    facts: Sequence[str] = (),
    intervals: Mapping[str, tuple[float, float]] | None = None,
) -> str:
    """Writes the summary (Markdown that reads well as plain text) and returns it.

    Args:
        evaluations: first and last, see `eval_metrics`.
        files: label -> path; only those that exist are named.
        next_steps: what one may want -> the command for it.
        facts: further lines under the title, such as the time it took.
        intervals: of the change, by reward, see `gains.intervals`.
    """
    parts = [f"# {title}", *(["\n".join(f"- {fact}" for fact in facts)] if facts else [])]
    first, last = evaluations
    ends = {f"reward_{name}_mean": f"{low:+.3f} to {high:+.3f}" for name, (low, high) in (intervals or {}).items()}
    rows = [(_plain(n), _number(first.get(n)), _number(last[n]), _change(first.get(n), last[n]), ends.get(n, "-")) for n in sorted(last)]
    columns = 5 if ends else 4
    head = ("evaluation", "before", "after", "change", "95 % interval")[:columns]
    parts.append(_table(head, [row[:columns] for row in rows]) if rows else "No evaluation was run (`eval.eval_freq`).")
    there = [(label, str(file)) for label, file in files.items() if file.exists()]
    if there:
        parts.append("## Files\n\n" + _listing(there))
    if next_steps:
        parts.append("## Next\n\n" + "\n".join(f"- {wish}:\n\n      {command}" for wish, command in next_steps.items()))
    text = "\n\n".join(parts) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return text


def _series(records: Iterable[Mapping[str, Any]]) -> dict[str, Series]:
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


def _panels(series: Mapping[str, Series]) -> list[Panel]:
    """(title, unit, drawing function, names of the series) of each panel that has something to show."""
    train, evaluation = (
        {found[1] for name in series if (found := re.fullmatch(rf"{where}/reward_(.+)_mean", name))} for where in ("train", "eval")
    )
    total = ["train/reward_mean"] + ["eval/reward_mean"] * (train == evaluation)  # sums of other rewards do not compare
    several = [("all, weighted", total)] if len(train) != 1 else []
    named = [(name, [f"train/reward_{name}_mean", f"eval/reward_{name}_mean"]) for name in sorted(train | evaluation)]
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
        x, y = _arrays(values)
        if name.startswith("eval/"):
            axes.plot(x, y, "D-", color=ORANGE, markersize=5, linewidth=1.2, label=f"evaluation, last {y[-1]:.3g}", zorder=3)
            continue
        window = _window(y)
        axes.plot(x, y, ".", color=BLUE, alpha=0.35 if window > 1 else 1, markersize=5, label="training")
        if window > 1:
            axes.plot(*_smooth(x, y, window), "-", color=BLUE, linewidth=2, label=f"training, mean of {window} epochs")


def _draw_lines(axes: Any, series: Mapping[str, Series]) -> None:
    for (name, values), color in zip(series.items(), (BLUE, ORANGE, PURPLE), strict=False):
        x, y = _arrays(values)
        axes.plot(x, y, ".-" if len(y) < 3 else "-", color=color, linewidth=0.8, alpha=0.35 if _window(y) > 1 else 1)
        axes.plot(*_smooth(x, y, _window(y)), "-", color=color, linewidth=1.8, label=f"{_plain(name.split('/', 1)[1])}, last {y[-1]:.6g}")
    axes.ticklabel_format(useOffset=False, axis="y")


def _draw_times(axes: Any, series: Mapping[str, Series]) -> None:
    """The phases on top of each other, one step of the stairs an epoch."""
    steps = [step for values in series.values() for step in values]
    span = range(min(steps), max(steps) + 1)
    base = np.zeros(len(span))
    for phase, color in PHASES.items():
        if values := series.get(f"time/{phase}_s"):
            top = base + np.array([values.get(step, 0.0) for step in span])
            axes.stairs(top, np.arange(span.start, span.stop + 1) - 0.5, baseline=base, fill=True, color=color, label=phase)
            base = top
    axes.set_ylim(0, 1.25 * base.max() or 1)  # room for the legend


def _arrays(values: Series) -> tuple[np.ndarray, np.ndarray]:
    steps = sorted(values)
    return np.array(steps), np.array([values[step] for step in steps])


def _window(y: np.ndarray) -> int:
    """How many epochs a smoothed line averages, an odd number; 1 where there are too few to smooth."""
    return 2 * max(1, len(y) // 24) + 1 if len(y) > 8 else 1


def _smooth(x: np.ndarray, y: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Centred moving mean (n - window + 1,) and where it stands: no half-filled windows, whose noise would look like a late turn."""
    mean = np.convolve(y, np.full(window, 1 / window), "valid")
    return x[window // 2 :][: len(mean)], mean


def _plain(name: str) -> str:
    return NAMES.get(name, name.removesuffix("_mean").replace("_", " "))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _change(before: float | None, after: float) -> str:
    return "-" if before is None else f"{after - before:+.3g}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[k]) for row in (head, *rows)) for k in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(c.ljust(w) if k == 0 else c.rjust(w) for k, (c, w) in enumerate(zip(cells, widths, strict=True))) + " |"

    rule = "|" + "|".join("-" * (w + 2) if k == 0 else "-" * (w + 1) + ":" for k, w in enumerate(widths)) + "|"
    return "\n".join([line(head), rule, *map(line, rows)])


def _listing(pairs: Sequence[tuple[str, str]]) -> str:
    width = max(len(label) for label, _ in pairs)
    return "\n".join(f"- {label}:{' ' * (width - len(label))} {value}" for label, value in pairs)
