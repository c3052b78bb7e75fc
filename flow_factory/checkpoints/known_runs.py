"""The runs in a folder, for messages about a run or a checkpoint that is not there."""

from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path

SAVE = Path("save")
"""The default of `log.save_dir`."""
SOME = 4
"""The number of runs that a message names."""
MARKS = ("metrics.jsonl", "checkpoints")
"""What shows that a folder is a run's."""


def is_run(folder: Path) -> bool:
    """Whether the folder is a run's."""
    return any((folder / name).exists() for name in MARKS)


def runs_in(folder: Path) -> list[Path]:
    """The runs in a folder and in the folders in it, the one that wrote last first. One that cannot be read is left out."""
    found: dict[Path, float] = {}
    for mark in reversed(MARKS):  # the time of the metrics counts, where they are
        for path in (*folder.glob(f"*/{mark}"), *folder.glob(f"*/*/{mark}")):
            if not any(part.startswith(".") or part in MARKS for part in path.parent.relative_to(folder).parts):
                with suppress(OSError):
                    found[path.parent] = path.stat().st_mtime
    return sorted(found, key=lambda run: (-found[run], run))


def newest_runs(folder: Path) -> str:
    """The names of some runs in a folder; empty if there are none."""
    runs = [str(run.relative_to(folder)) for run in runs_in(folder)]
    more = f" and {len(runs) - SOME} more" if len(runs) > SOME else ""
    return ", ".join(runs[:SOME]) + more


def runs_hint(missing: Path) -> str:
    """What may have been meant instead of a path that is not there, and the runs beside it or in `save`; empty if there are none."""
    places = (missing.parent, SAVE) if missing.parent != Path() else (SAVE, Path())
    for folder in dict.fromkeys(places):
        if runs := runs_in(folder):
            names = [run.name for run in runs]
            close = get_close_matches(missing.name, names, n=1)
            near = f" Did you mean {runs[names.index(close[0])]}?" if close else ""
            return f"{near} Runs in {'this folder' if folder == Path() else folder}, newest first: {newest_runs(folder)}"
    return ""
