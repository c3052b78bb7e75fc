"""`monitor.jsonl` in a run's folder: what `monitor:` saw and did, one object a line, for people and for the summary."""

import json
from pathlib import Path
from typing import Any

from flow_factory.reporting.metrics import whole_lines
from flow_factory.utils.files import replace_text

FILE = "monitor.jsonl"


def add_alarm(folder: Path, step: int, what: dict[str, Any]) -> None:
    """Appends a line; those of later steps, which a run that goes on makes anew, are dropped, and so is one that is there already."""
    record = {"step": step, **what}
    kept = [alarm for alarm in read_alarms(folder) if alarm["step"] <= step and alarm != record]
    replace_text(folder / FILE, "".join(json.dumps(alarm) + "\n" for alarm in [*kept, record]))


def read_alarms(folder: Path) -> list[dict[str, Any]]:
    """In their order; none where there is no file.

    Raises:
        ValueError: a line is not JSON.
    """
    file = folder / FILE
    return [record for _, record in whole_lines(file)] if file.is_file() else []


def alarm_facts(folder: Path, epoch: int) -> list[str]:
    """A line of the summary for each alarm up to this epoch."""
    return [f"monitor: {alarm['saw']}{alarm['did']}" for alarm in read_alarms(folder) if alarm["step"] <= epoch]
