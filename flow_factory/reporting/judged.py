"""The results of `ff-eval`: means, differences to the first weights, and win rates, each with its protocol, as Markdown, CSV and JSON."""

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flow_factory.reporting.bootstrap import SURE, Estimate, estimate, wins
from flow_factory.reporting.report import markdown_table

Tables = Mapping[tuple[str, str], NDArray[np.float64]]
"""Scores (prompts, noises, rewards) by label of the weights and name of the data set, NaN where one is missing."""
HEAD = ("reward", "weights", "mean", "95 % interval", "difference", "95 % interval", "better / equal / worse", "win rate", "95 % interval")
HOW = (
    f"Intervals: {SURE:.0%} percentile bootstrap over prompts, each with all its seeds. Differences, wins and ties are of the same pairs "
    "of prompt and noise; a tie counts as half a win."
)


@dataclass(frozen=True)
class Against:
    """The change from other weights, over the pairs that have both scores."""

    weights: str
    difference: Estimate
    better: float
    """Share of the pairs, in [0, 1], as of `equal` and `worse`."""
    equal: float
    worse: float
    win_rate: Estimate


@dataclass(frozen=True)
class Judged:
    """A reward under one set of weights, over the pairs of a data set."""

    dataset: str
    reward: str
    weights: str
    pairs: int
    missing: int
    mean: Estimate
    against: Against | None


def judged(tables: Tables, rewards: Mapping[str, Sequence[str]], labels: Sequence[str]) -> list[Judged]:
    """All results, by data set, reward and weights.

    Args:
        rewards: their names, by data set.
        labels: of the weights; the others are compared with the first.
    """
    found = []
    for dataset, names in rewards.items():
        for k, name in enumerate(names):
            columns = [tables[label, dataset][..., k] for label in labels]
            for label, scores in zip(labels, columns, strict=True):
                against = None if label == labels[0] else _against(labels[0], columns[0], scores)
                missing = int(np.isnan(scores).sum())
                found.append(Judged(dataset, name, label, scores.size, missing, estimate(scores), against))
    return found


def _against(label: str, before: NDArray[np.float64], after: NDArray[np.float64]) -> Against:
    won = wins(before, after)
    many = max(1, int((~np.isnan(won)).sum()))
    shares = [float((won == value).sum() / many) for value in (1, 0.5, 0)]
    return Against(label, estimate(after - before), shares[0], shares[1], shares[2], estimate(won))


# -- the protocol -----------------------------------------------------------------------------------------------------------------------


def short_protocol(protocol: Mapping[str, Any], dataset: str) -> str:
    """One line: the prompts, seeds and settings behind the numbers of a data set."""
    data, versions = protocol["data"][dataset], protocol["versions"]
    size = f"{data['width']} x {data['height']} px"
    more = [f"{key} {value}" for key, value in data["call"].items()]
    parts = [
        f"{data['rows']} prompts (sha256 {data['prompts'][:12]}) x seeds {ranges(protocol['seeds'])} = "
        f"{data['rows'] * len(protocol['seeds'])} pairs",
        ", ".join([f"{data['steps']} steps", f"guidance {data['guidance_scale']:g}", size, *more]),
        f"{protocol['model']} ({protocol['mixed_precision']}, {protocol['device']})",
        ", ".join(f"{name} {version}" for name, version in versions.items()),
    ]
    return "; ".join(parts)


def ranges(numbers: Sequence[int]) -> str:
    """`0-7`, `1,5,9-11`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


# -- the files --------------------------------------------------------------------------------------------------------------------------


def write_results(folder: Path, found: Sequence[Judged], protocol: Mapping[str, Any], weights: Mapping[str, Any], more: str = "") -> str:
    """Writes results.md, results.csv and results.json; the Markdown.

    Args:
        weights: where those of each label come from.
        more: Markdown that follows the tables.
    """
    text = markdown(found, protocol) + more
    results = [{"protocol": short_protocol(protocol, one.dataset), **asdict(one)} for one in found]
    whole = {"protocol": protocol, "weights": weights, "results": results}
    (folder / "results.md").write_text(text, "utf-8")
    (folder / "results.json").write_text(json.dumps(_known(whole), indent=1, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")
    (folder / "results.csv").write_text(_csv(found, protocol), "utf-8")
    return text


def _known(value: Any) -> Any:
    """The results as JSON values: null for NaN, estimates by name."""
    if isinstance(value, Estimate):
        return _known(value._asdict())
    if isinstance(value, Mapping):
        return {key: _known(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_known(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def markdown(found: Sequence[Judged], protocol: Mapping[str, Any]) -> str:
    """A table for each data set, under its protocol."""
    parts = ["# Evaluation", HOW]
    for dataset in dict.fromkeys(one.dataset for one in found):
        mine = [one for one in found if one.dataset == dataset]
        parts += [f"## {dataset}"] if dataset else []
        parts.append(f"Protocol: {short_protocol(protocol, dataset)}.")
        others = any(one.against for one in mine)
        columns = range(len(HEAD) if others else 4)
        parts.append(markdown_table([HEAD[k] for k in columns], [[row[k] for k in columns] for row in map(_cells, mine)]))
        parts += [f"The difference is to {mine[0].weights}."] if others else []
        lost = [f"{one.reward} of {one.weights}: {one.missing} of {one.pairs}" for one in mine if one.missing]
        parts += [f"Missing scores: {'; '.join(lost)}."] if lost else []
    return "\n\n".join(parts) + "\n"


def _cells(one: Judged) -> list[str]:
    cells = [one.reward, one.weights, f"{one.mean.mean:.4g}", _interval(one.mean, "")]
    if one.against is None:
        return [*cells, *["-"] * 5]
    its = one.against
    shares = f"{its.better:.1%} / {its.equal:.1%} / {its.worse:.1%}"
    return [
        *cells, f"{its.difference.mean:+.4g}", _interval(its.difference, "+"), shares, f"{its.win_rate.mean:.3f}",
        _interval(its.win_rate, ""),
    ]  # fmt: skip


def _interval(found: Estimate, sign: str) -> str:
    return "-" if math.isnan(found.low) else f"{found.low:{sign}.4g} to {found.high:{sign}.4g}"


def _csv(found: Sequence[Judged], protocol: Mapping[str, Any]) -> str:
    file = io.StringIO()
    table = csv.writer(file, lineterminator="\n")
    rows = [dict(_flat(one, protocol)) for one in found]
    table.writerow(rows[0])
    table.writerows(row.values() for row in rows)
    return file.getvalue()


def _flat(one: Judged, protocol: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """A result's cells by name, with those of its protocol."""
    yield from {key: getattr(one, key) for key in ("dataset", "reward", "weights", "pairs", "missing")}.items()
    nothing, its = Estimate(math.nan, math.nan, math.nan), one.against
    estimates = {"mean": one.mean, "difference": its.difference if its else nothing, "win_rate": its.win_rate if its else nothing}
    yield "against", its.weights if its else ""
    for name, found in estimates.items():
        for key, value in found._asdict().items():
            yield (name if key == "mean" else f"{name}_{key}"), ("" if math.isnan(value) else value)
    for key in ("better", "equal", "worse"):
        yield key, getattr(its, key) if its else ""
    data = protocol["data"][one.dataset]
    yield from {key: data[key] for key in ("steps", "guidance_scale", "height", "width", "rows", "prompts")}.items()
    yield "seeds", ranges(protocol["seeds"])
    yield "protocol", short_protocol(protocol, one.dataset)
