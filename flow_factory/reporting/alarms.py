"""`monitor.jsonl` in a run's folder: what `monitor:` saw and did, one object a line, for people and for the summary."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from flow_factory.reporting.metrics import records_with
from flow_factory.utils.files import replace_text

FILE = "monitor.jsonl"
ENDS = "ends"
"""The field with the key of a watch that has ended the run."""


def add_alarm(folder: Path, step: int, what: dict[str, Any]) -> None:
    """Appends a line. Lines of later steps are dropped, as a resumed run writes them again. An existing line is not repeated."""
    record = {"step": step, **what}
    kept = [alarm for alarm in read_alarms(folder) if alarm["step"] <= step and alarm != record]
    replace_text(folder / FILE, "".join(json.dumps(alarm) + "\n" for alarm in [*kept, record]))


def read_alarms(folder: Path) -> list[dict[str, Any]]:
    """The alarms in order; an empty list without a file.

    Raises:
        ValueError: a whole line is not JSON, or no alarm.
    """
    file = folder / FILE
    return records_with(file, {"step": int, "saw": str, "did": str}, "no alarm of a step") if file.is_file() else []


def ended_by(folder: Path, epoch: int, keys: Collection[str]) -> bool:
    """Whether one of the watches of these keys has ended the run after this epoch.

    Raises:
        ValueError: see `read_alarms`.
    """
    return any(alarm["step"] == epoch and alarm.get(ENDS) in keys for alarm in read_alarms(folder))


def described(saw: str, did: str) -> str:
    """What a watch saw and what was done, if anything was."""
    return f"{saw}; {did}" if did else saw


def alarm_facts(folder: Path, epoch: int) -> list[str]:
    """A line of the summary for each alarm up to this epoch."""
    return [f"monitor: {described(alarm['saw'], alarm['did'])}" for alarm in read_alarms(folder) if alarm["step"] <= epoch]
