"""The runs in a folder, and the comparison of two or more of them."""

import json
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from flow_factory.config import ConfigError
from flow_factory.config.base import show
from flow_factory.config.changed import flattened
from flow_factory.config.text import read_foreign
from flow_factory.reporting.metrics import records_of
from flow_factory.reporting.page import store
from flow_factory.reporting.page.html import rows_of
from flow_factory.reporting.page.selection import Card, cards_of
from flow_factory.reporting.page.series import charts
from flow_factory.reporting.page.store import Evaluation
from flow_factory.reporting.page.write import epochs_in, state
from flow_factory.reporting.paired_gains import FILE as SCORES
from flow_factory.reporting.paired_gains import compare

LOCK, LOCKS = ".lock", Path("/proc/locks")
DEEPEST, MOST = 3, 2000
"""Folders between the folder of runs and a run; runs that are listed."""
FRESH = 15 * 60.0
"""Seconds after its last metrics for which a run that another machine has locked counts as running."""
COMPARED = ("model.model_type", "model.finetune_type", "train.trainer_type", "train.learning_rate")
"""Keys that the list of runs shows."""


@dataclass(frozen=True)
class Listed:
    """A run in the list."""

    name: str
    state: str
    running: bool
    changed: float
    """When its metrics were written last, in seconds since 1970."""
    config: Mapping[str, str]
    results: Sequence[Mapping[str, Any]]
    """See `html.rows_of`."""
    damaged: str = ""
    """The files of the run that cannot be read."""


def folders(root: Path) -> dict[str, Path]:
    """Name -> folder of each run: a folder with metrics.jsonl or report/. The root itself may be one."""
    if _holds_run(root):
        return {root.resolve().name: root}
    return {str(path.relative_to(root)): path for path, _ in zip(_within(root, DEEPEST), range(MOST), strict=False)}


def _within(folder: Path, deep: int) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.is_dir() or not os.access(path, os.R_OK | os.X_OK):
            continue
        if _holds_run(path):
            yield path
        elif deep > 1:
            yield from _within(path, deep - 1)


def _holds_run(folder: Path) -> bool:
    return (folder / "metrics.jsonl").is_file() or (folder / store.FOLDER).is_dir()


def listed(name: str, folder: Path) -> Listed:
    """A run's entry in the list. For damaged files it names them."""
    file, running = folder / "metrics.jsonl", is_running(folder)
    changed = file.stat().st_mtime if file.is_file() else folder.stat().st_mtime
    try:
        step, results = _ends(folder, _version(file), _version(folder / SCORES)) if file.is_file() else (0, [])
        config = settings_of(folder)
        return Listed(name, state(step, store.about(folder).epochs, running), running, changed, config, results)
    except (ValueError, ConfigError) as error:
        return Listed(name, "damaged", running, changed, {}, [], str(error))


@lru_cache(MOST)
def _ends(folder: Path, metrics: tuple[int, int], scores: tuple[int, int]) -> tuple[int, list[dict[str, Any]]]:
    """(epochs done, results) of a run whose files have these versions."""
    records = records_of(folder)
    return epochs_in(records), _results(folder, records)


def _results(folder: Path, records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    found = compare(folder, records)
    return rows_of(found.before, found.after, {})


def _version(file: Path) -> tuple[int, int]:
    found = file.stat() if file.is_file() else None
    return (found.st_mtime_ns, found.st_size) if found else (0, 0)


def settings_of(folder: Path) -> dict[str, str]:
    """Key -> value of the run's config.yaml, without secrets; empty without the file.

    Raises:
        ConfigError: it is not YAML.
    """
    file = folder / "config.yaml"
    tree = read_foreign(file) if file.is_file() else {}
    return {".".join(map(str, keys)): _shown(value) for keys, value in flattened(tree) if keys}


def _shown(value: Any) -> str:
    text = show(value)
    return text[1:-1] if isinstance(value, str) and text.endswith('"') else text


def is_running(folder: Path) -> bool:
    """Whether a process of this machine holds the run's lock, or another machine's name is in it and the metrics are recent."""
    lock, metrics = folder / LOCK, folder / "metrics.jsonl"
    if not lock.is_file():
        return False
    inode = f":{lock.stat().st_ino}"
    lines = LOCKS.read_text().splitlines() if LOCKS.is_file() else []
    if any("FLOCK" in line and any(word.endswith(inode) for word in line.split()) for line in lines):
        return True
    try:
        owner = json.loads(lock.read_text())["machine"]
    except (ValueError, KeyError, TypeError):
        return False
    return owner != socket.gethostname() and metrics.is_file() and time.time() - metrics.stat().st_mtime < FRESH


def laid_over(chosen: Mapping[str, Path]) -> dict[str, Any]:
    """The charts of several runs, see `series.charts`. Each run has a colour; its first line is solid, its others are dashed."""
    found = {name: charts(records_of(folder)) for name, folder in chosen.items()}
    together: dict[str, Any] = {}
    for part in ("main", "others"):
        titles: dict[str, dict[str, Any]] = {}
        for colour, (name, its) in enumerate(found.items()):
            for chart in its[part]:
                title = "Time" if chart["title"].startswith("Time") else chart["title"]
                lines = titles.setdefault(title, {"title": title, "unit": chart["unit"], "lines": []})["lines"]
                several = len(chart["lines"]) > 1
                for k, line in enumerate(chart["lines"]):
                    label = f"{name}: {line['label']}" if several else name
                    lines.append(line | {"label": label, "colour": colour, "dash": k > 0})
        together[part] = list(titles.values())
    return together


def differences(chosen: Mapping[str, Path]) -> list[tuple[str, list[str]]]:
    """(key, value in each run) of the keys of config.yaml that differ between the runs; a dash for a missing key."""
    configs = [settings_of(folder) for folder in chosen.values()]
    keys = dict.fromkeys(key for config in configs for key in config)
    rows = [(key, [config.get(key, "–") for config in configs]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def results_of(chosen: Mapping[str, Path]) -> list[tuple[str, list[Mapping[str, Any] | None]]]:
    """(metric, its row in each run, or None)."""
    each = [{row["name"]: row for row in _results(folder, records_of(folder))} for folder in chosen.values()]
    return [(name, [rows.get(name) for rows in each]) for name in dict.fromkeys(name for rows in each for name in rows)]


def side_by_side(chosen: Mapping[str, Path], most: int) -> list[Card]:
    """The last evaluation's pictures of the test rows that two or more runs have, as many as fit into `most` bytes."""
    last = ((name, *found) for name, folder in chosen.items() for found in store.evaluations(folder)[-1:])
    cards = cards_of((f"{name}, epoch {step}", store.read(path, Evaluation).samples) for name, path, step in last)
    found = []
    for card in (cards[key] for key in sorted(cards) if len(cards[key].shown) > 1):
        most -= sum(len(sample.src) for _, sample in card.shown)
        if most < 0:
            break
        found.append(card)
    return found
