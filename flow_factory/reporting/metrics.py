"""`metrics.jsonl`: a run's metrics, flushed to disk at once."""

import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from flow_factory.utils.files import replace_text


class MetricsFile:
    """`metrics.jsonl`: one object a line with `step`, `time` (seconds since 1970) and the metrics, written through at once.

    NaN and infinity, which JSON does not know, are written as null. A line that a killed process left half-written is removed at opening.
    """

    def __init__(self, run_dir: Path):
        self.path = run_dir / "metrics.jsonl"
        run_dir.mkdir(parents=True, exist_ok=True)
        written = self.path.read_bytes() if self.path.exists() else b""
        if not written.endswith(b"\n"):
            os.truncate(self.path, written.rfind(b"\n") + 1) if written else self.path.touch()
        self._file = self.path.open("a", encoding="utf-8")

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Appends a line."""
        values = {name: float(value) for name, value in metrics.items()}
        record = {"step": step, "time": round(time.time(), 3)} | {k: v if math.isfinite(v) else None for k, v in values.items()}
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()

    def truncate_after(self, step: int) -> None:
        """Drops the lines of later steps: a resumed run writes them again."""
        self._file.close()
        replace_text(self.path, "".join(json.dumps(record) + "\n" for record in read_metrics(self.path) if record["step"] <= step))
        self._file = self.path.open("a", encoding="utf-8")

    def finish(self) -> None:
        """Closes the file."""
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`, also of a run in progress, whose last line may be half-written.

    Raises:
        ValueError: a whole line is not JSON, or has no step.
    """
    return records_with(path, {"step": int}, "no metrics of a step")


def records_with(path: Path, fields: Mapping[str, type], otherwise: str) -> list[dict[str, Any]]:
    """The whole lines of a file of JSON lines: objects that have these fields.

    Raises:
        ValueError: a whole line is not JSON, or something else, of which `otherwise` says what it is not.
    """
    records = []
    for number, record in whole_lines(path):
        if not isinstance(record, dict) or not all(isinstance(record.get(name), kind) for name, kind in fields.items()):
            raise ValueError(f"{path}:{number}: {otherwise}")
        records.append(record)
    return records


def records_of(folder: Path) -> list[dict[str, Any]]:
    """`read_metrics` of a run's folder; nothing where it has none yet.

    Raises:
        ValueError: see `read_metrics`.
    """
    file = folder / "metrics.jsonl"
    return read_metrics(file) if file.is_file() else []


def evaluations_in(records: Iterable[Mapping[str, Any]]) -> dict[int, dict[str, float]]:
    """Epochs done -> the metrics of the evaluation at that time, without `eval/` in their names. NaN and infinity are left out."""
    found: dict[int, dict[str, float]] = {}
    for record in records:
        mine = {k.removeprefix("eval/"): v for k, v in record.items() if k.startswith("eval/") and v is not None}
        if mine:
            found.setdefault(record["step"], {}).update(mine)
    return found


def whole_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """(number from 1, value) of each whole line of a file of JSON lines: the last one may be half-written.

    Raises:
        ValueError: a whole line is not JSON.
    """
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(keepends=True), start=1):
        if line.endswith("\n"):
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}:{number}: not JSON: {error.msg}") from error
