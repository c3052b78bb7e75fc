"""The report of a run: grids of images and a summary. Needs only the run's folder."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from flow_factory.reporting.curves import plain
from flow_factory.reporting.metrics import read_metrics
from flow_factory.reporting.pictures import before_after_sheet, contact_sheet
from flow_factory.types import Sample


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


_FULL_ROWS = r"eval_full/([^/]+/)?rows"


def full_evaluation(metrics_jsonl: Path) -> list[str]:
    """Lines about the last evaluation, if it alone took all rows."""
    last: dict[str, float] = next(
        (r for r in reversed(read_metrics(metrics_jsonl)) if any(re.fullmatch(_FULL_ROWS, name) for name in r)), {}
    )
    lines = []
    for name, rows in last.items():
        if (found := re.fullmatch(_FULL_ROWS, name)) is None:
            continue
        mean = re.compile(f"eval_full/{re.escape(found[1] or '')}reward_(.+)_mean")
        means = [f"{its[1]} {_number(value)}" for key, value in last.items() if (its := mean.fullmatch(key))]
        lines.append(f"at the end, on all {rows:.0f} test rows{f' of {found[1][:-1]}' if found[1] else ''}: " + ", ".join(means))
    return lines


def nothing_learned(metrics_jsonl: Path, rewards: Sequence[str]) -> list[str]:
    """A line about rewards that gave all samples of every group the same score in every epoch; empty if there are none."""
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
        evaluations: first and last, see `paired_gains.compare`.
        files: label -> path; only those that exist are named.
        next_steps: what one may want -> the command for it.
        facts: further lines under the title, such as the time it took.
        intervals: of the change, by metric, see `paired_gains.compare`.
    """
    parts = [f"# {title}", *(["\n".join(f"- {fact}" for fact in facts)] if facts else [])]
    first, last = evaluations
    ends = {name: f"{low:+.3f} to {high:+.3f}" for name, (low, high) in (intervals or {}).items()}
    rows = [(plain(n), _number(first.get(n)), _number(last[n]), _change(first.get(n), last[n]), ends.get(n, "-")) for n in sorted(last)]
    columns = 5 if ends else 4
    head = ("evaluation", "before", "after", "change", "95 % interval")[:columns]
    parts.append(markdown_table(head, [row[:columns] for row in rows]) if rows else "No evaluation was run (`eval.eval_freq`).")
    there = [(label, str(file)) for label, file in files.items() if file.exists()]
    if there:
        parts.append("## Files\n\n" + _listing(there))
    if next_steps:
        parts.append("## Next\n\n" + "\n".join(f"- {wish}:\n\n      {command}" for wish, command in next_steps.items()))
    text = "\n\n".join(parts) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return text


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _change(before: float | None, after: float) -> str:
    return "-" if before is None else f"{after - before:+.3g}"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that reads well as plain text: the first column to the left, the others to the right."""
    widths = [max(len(row[k]) for row in (head, *rows)) for k in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(c.ljust(w) if k == 0 else c.rjust(w) for k, (c, w) in enumerate(zip(cells, widths, strict=True))) + " |"

    rule = "|" + "|".join("-" * (w + 2) if k == 0 else "-" * (w + 1) + ":" for k, w in enumerate(widths)) + "|"
    return "\n".join([line(head), rule, *map(line, rows)])


def _listing(pairs: Sequence[tuple[str, str]]) -> str:
    width = max(len(label) for label, _ in pairs)
    return "\n".join(f"- {label}:{' ' * (width - len(label))} {value}" for label, value in pairs)
