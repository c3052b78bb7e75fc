"""The runs in a folder, for messages about a run or a checkpoint that is not there."""

from collections.abc import Sequence
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


def some_of(runs: Sequence[Path]) -> str:
    """The first runs as text, with the number of the others."""
    more = f" and {len(runs) - SOME} more" if len(runs) > SOME else ""
    return ", ".join(map(str, runs[:SOME])) + more


def runs_hint(missing: Path) -> str:
    """What may have been meant instead of a path that is not there, and the runs beside it or in `save`; empty if there are none."""
    gone = _first_missing(missing)
    places = [folder for folder in (missing.parent, gone.parent) if folder != Path(folder.anchor)]  # neither the root nor here
    for folder in dict.fromkeys((*places, SAVE, *([Path()] if gone.parent == Path() else []))):
        if runs := runs_in(folder):
            near = _near(missing, gone, runs)
            names = some_of([run.relative_to(folder) for run in runs])
            return f"{near} Runs in {'this folder' if folder == Path() else folder}, newest first: {names}"
    return ""


def _first_missing(path: Path) -> Path:
    """The highest folder of a missing path that is not there: its name is the mistyped one."""
    return next(p for p in (*reversed(path.parents), path) if not p.exists() or p == path)


def _near(missing: Path, gone: Path, runs: Sequence[Path]) -> str:
    """The run, or the path in it, whose name is close to the one that is missing."""
    names = [run.name for run in runs]
    for path in dict.fromkeys((missing, gone)):
        if close := get_close_matches(path.name, names, n=1):
            run = runs[names.index(close[0])]
            whole = run / missing.relative_to(path)
            return f" Did you mean {whole if whole.exists() else run}?"
    return ""
