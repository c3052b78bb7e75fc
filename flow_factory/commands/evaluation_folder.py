"""The folder of an evaluation: its protocol, the origin of the weights, and every score, written as soon as it is known."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flow_factory.commands.places import WRITABLE
from flow_factory.reporting.metrics import whole_lines
from flow_factory.types import Row
from flow_factory.utils.errors import UserError, file_errors
from flow_factory.utils.files import replace_text

PROTOCOL = "protocol.json"
Known = dict[tuple[str, str, int], dict[str, list[float | None]]]
"""(label of the weights, data set, id of the row) -> reward -> scores of all seeds; None for a missing score."""


class EvaluationFolder:
    """The scores of any number of weights under one protocol.

    Args:
        protocol: everything that a score depends on, except the weights.
        weights: label -> `checkpoint` (a path) and `sha256`.
        process: the rank of this process, which has its own file. Process 0 writes the protocol.

    Raises:
        UserError: the folder has another protocol, or other weights under one of these labels; or it cannot be written.
    """

    def __init__(self, path: Path, protocol: Mapping[str, Any], weights: Mapping[str, Any], process: int):
        self.path, self.protocol = path, protocol
        with file_errors("--out", path, WRITABLE):
            path.mkdir(parents=True, exist_ok=True)
            there = read_protocol(path) or {"protocol": protocol, "weights": {}}
            if other := mismatch(path, there, protocol, weights):
                raise UserError(f"--out: {other}; name another folder")
            number = max((int(file.stem.partition("-")[2]) for file in self.files()), default=-1) + 1
            self.file = path / f"scores-{number + process}.jsonl"
            if process == 0:
                text = json.dumps({"protocol": protocol, "weights": there["weights"] | dict(weights)}, indent=1, ensure_ascii=False)
                replace_text(path / PROTOCOL, text + "\n")

    def files(self) -> list[Path]:
        """The files of scores: one for each process of each start."""
        return sorted(self.path.glob("scores-[0-9]*.jsonl"))

    def keep(self, label: str, dataset: str, rows: Sequence[Row], scores: Mapping[str, Sequence[Sequence[float]]]) -> None:
        """Appends the scores of rows: reward -> for each row the scores of all seeds, NaN for a missing one."""
        known = {name: [[v if math.isfinite(v) else None for v in of] for of in its] for name, its in scores.items()}
        record = {"weights": label, "dataset": dataset, "rows": [row.id for row in rows], "scores": known}
        with file_errors("--out", self.file, WRITABLE), self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")

    def scores(self) -> Known:
        """All stored scores. A partial line of a killed process is ignored.

        Raises:
            UserError: a complete line is damaged.
        """
        found: Known = {}
        for path in self.files():
            try:
                for _, line in whole_lines(path):
                    for k, row in enumerate(line["rows"]):
                        found[line["weights"], line["dataset"], row] = {name: scores[k] for name, scores in line["scores"].items()}
            except (ValueError, KeyError, TypeError, IndexError) as error:
                raise UserError(f"--out: {path} is damaged ({error}); delete it, and its samples are scored again") from error
        return found


def read_protocol(folder: Path) -> dict[str, Any] | None:
    """`protocol` and `weights` of a folder; None if no evaluation is in it.

    Raises:
        UserError: the file is damaged, or cannot be read.
    """
    file = folder / PROTOCOL
    try:
        with file_errors("--out", file, "name a folder that can be read"):
            if not file.is_file():
                return None
            found = json.loads(file.read_text("utf-8"))
        weights = {label: {key: one[key] for key in ("checkpoint", "sha256")} for label, one in dict(found["weights"]).items()}
        return {"protocol": dict(found["protocol"]), "weights": weights}
    except UserError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"--out: {file} is damaged ({error}); name another folder") from error


def mismatch(folder: Path, there: Mapping[str, Any], protocol: Mapping[str, Any], weights: Mapping[str, Any]) -> str | None:
    """Why an evaluation cannot go on in a folder with this content of its protocol.json; None if it can."""
    file = folder / PROTOCOL
    if other := difference(there["protocol"], protocol):
        key, before, now = other
        return f"{file} has {key}: {before}, and this evaluation {now}"
    for label in weights.keys() & there["weights"].keys():
        if there["weights"][label]["sha256"] != weights[label]["sha256"]:
            return f"{file}: {label} was {there['weights'][label]['checkpoint']} with other weights"
    return None


def takes(folder: Path, protocol: Mapping[str, Any], weights: Mapping[str, Any]) -> bool:
    """Whether the folder is one of this evaluation, which goes on in it. A damaged or unreadable one is not."""
    try:
        there = read_protocol(folder)
    except UserError:
        return False
    return there is not None and mismatch(folder, there, protocol, weights) is None


def difference(there: Any, here: Any, key: str = "") -> tuple[str, str, str] | None:
    """(dotted key, value there, value here) of the first difference; None without one."""
    if isinstance(there, dict) and isinstance(here, dict):
        names = dict.fromkeys((*here, *there))
        found = (difference(there.get(name), here.get(name), f"{key}.{name}" if key and name else key or name) for name in names)
        return next(filter(None, found), None)
    return None if there == here else (key, json.dumps(there)[:80], json.dumps(here)[:80])
