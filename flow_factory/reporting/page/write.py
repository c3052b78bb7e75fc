"""Writes `report.html` of a run's folder from the files in it."""

import time
from pathlib import Path
from typing import Any

from flow_factory.reporting.metrics import records_of
from flow_factory.reporting.page import store
from flow_factory.reporting.page.html import render, rows_of
from flow_factory.reporting.page.selection import select
from flow_factory.reporting.page.series import charts
from flow_factory.reporting.paired_gains import compare
from flow_factory.utils.files import replace_text

FILE = "report.html"


def write_page(folder: Path) -> None:
    """Writes the page atomically: a reader sees the old one or the new one.

    Raises:
        ValueError: a file that it is made of is damaged.
    """
    replace_text(folder / FILE, page_of(folder))


def page_of(folder: Path, live: str = "", running: bool = False) -> str:
    """The page of a run.

    Args:
        live: where its scripts ask for what is new; "" for a file, which asks nobody.
        running: whether the run goes on.

    Raises:
        ValueError: a file that it is made of is damaged.
    """
    records = records_of(folder)
    about, pictures = store.about(folder), select(folder)
    found = compare(folder, records)
    return render(
        "report.html.jinja", {"charts": charts(records), "live": live, "stamp": stamp(folder)}, live,
        name=folder.name, about=about, results=rows_of(found.before, found.after, found.intervals), compared=found.note,
        pictures=pictures, remarks=store.remarks(folder)[::-1],
        state=state(epochs_in(records), about.epochs, running), written=time.time(),
    )  # fmt: skip


def live_data(folder: Path, running: bool) -> dict[str, Any]:
    """The data that the scripts of a run's page request during the training.

    Raises:
        ValueError: a file of the run is damaged.
    """
    records = records_of(folder)
    return {"charts": charts(records), "stamp": stamp(folder), "state": state(epochs_in(records), store.about(folder).epochs, running)}


def epochs_in(records: list[dict[str, Any]]) -> int:
    """The number of epochs done."""
    return max((record["step"] for record in records), default=0)


def state(step: int, last: int | None, running: bool = False) -> str:
    """The progress of a run."""
    far = f"epoch {step}{'' if last is None else f' of {last}'}"
    return f"{far}, {'running' if running else 'finished'}" if running or (last is not None and step >= last) else far


def stamp(folder: Path) -> list[Any]:
    """A value that changes when there are new pictures or remarks."""
    file = folder / store.FOLDER / store.REMARKS
    last = [found[-1][1] if found else -1 for found in (store.evaluations(folder), store.epochs(folder))]
    return [*last, file.stat().st_size if file.is_file() else 0]
