"""The folders that commands write to when `--out` names none: beside the checkpoints of the run that they look at."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from flow_factory.checkpoints.known_runs import is_run
from flow_factory.utils.errors import file_errors

WRITABLE = "name a folder that can be written"
"""What is right, in errors about an output folder."""
DEEP = 4
"""The number of folders, from the checkpoint upwards, in which the run's config is searched."""
NAMED = 3
"""The number of checkpoints that the name of a folder says."""
LONGEST = 100
"""The number of characters of a folder's name, without a number."""


def out_path(text: str) -> Path:
    """The path of `--out`.

    Raises:
        argparse.ArgumentTypeError: it is empty, which would be the current folder.
    """
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty; write the path of what is made")
    return Path(text)


def config_above(path: Path) -> Path | None:
    """The config.yaml of the run that a checkpoint belongs to; None if there is none."""
    here = [path, *(path.parents if not path.is_absolute() else ()), *path.absolute().parents]
    here = list({folder.absolute(): folder for folder in reversed(here)}.values())[::-1][:DEEP]  # relative ones as they are written
    return next((folder / "config.yaml" for folder in here if (folder / "config.yaml").is_file()), None)


def default_out(kind: str, weights: Sequence[tuple[Path | None, str]], config: Path | None) -> Path:
    """`<run>/<kind>-<labels>`, in the folder of the first run that is meant, or in the current folder if there is no run.

    Args:
        kind: what is written, for example `eval`.
        weights: (checkpoint, label).
        config: the YAML on the command line, which may be a run's.
    """
    files = [config_above(path) for path, _ in weights if path is not None] + [config]
    home = next((file.parent for file in files if file is not None and is_run(file.parent)), Path())
    labels = [label for path, label in weights if path is not None] or ["base"]
    more = [f"{len(labels) - NAMED}-more"] if len(labels) > NAMED else []
    return home / "-".join((kind, *labels[:NAMED], *more))[:LONGEST]


def numbered(path: Path) -> Iterator[Path]:
    """The path, then the path with the numbers from 2."""
    yield path
    yield from (path.with_name(f"{path.name}-{n}") for n in count(2))


def first_free(path: Path, usable: Callable[[Path], bool] = lambda folder: False) -> Path:
    """The first of `numbered` that is not there yet, or that is usable as it is."""
    return next(folder for folder in numbered(path) if not folder.exists() or usable(folder))


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Makes the first of `numbered` that is not there: commands that start together have one each. It is removed if it stays empty.

    Raises:
        UserError: it cannot be made.
    """
    with file_errors("--out", path, WRITABLE):
        made = next(folder for folder in numbered(path) if _made(folder))
    try:
        yield made
    finally:
        with suppress(OSError):  # it has files
            made.rmdir()


def _made(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return False
    return True
