"""The folder of a run: one run writes it at a time, and its content is one history.

The main process claims it before anything is written: it creates a new folder exclusively, and holds a lock during the run. The lock is the
kernel's (flock, on `.lock`), so the death of the process releases it. On NFS the server holds it for all machines (with the mount options
local_lock or nolock only for the processes of one machine). If a file system has no locks, a line reports it.
"""

import fcntl
import json
import os
import shutil
import socket
import sys
import time
from contextlib import suppress
from errno import EACCES, EAGAIN, ENOTDIR
from pathlib import Path
from types import TracebackType

from flow_factory.checkpoints.checkpoint import checkpoints, numbered, unfinished_archive
from flow_factory.config import RunConfig, dump_config
from flow_factory.reporting.metrics import read_metrics
from flow_factory.utils.errors import UserError, file_errors
from flow_factory.utils.terminal import note

LOCK = ".lock"
TEST = ".test-run"
"""The folder of test runs inside `log.save_dir`. Each test run's folder is removed with its claim."""
WRITABLE = "write a folder that can be written to"
_held: dict[Path, int] = {}
"""Resolved folder -> the lock of this process, which may claim a folder again."""


def _forget() -> None:
    for lock in _held.values():
        os.close(lock)
    _held.clear()


os.register_at_fork(after_in_child=_forget)  # else a child that survives a killed run would keep its lock


def named(config: RunConfig) -> Path | None:
    """The folder of a run with a name; None without one.

    Raises:
        UserError: the name points outside of `log.save_dir`.
    """
    if config.log.run_name is None:
        return None
    folder = Path(config.log.save_dir, config.log.run_name)
    inside = os.path.relpath(folder, config.log.save_dir)  # by names only, because the folder may be a link
    if inside == os.curdir or Path(inside).parts[0] == os.pardir:
        raise UserError(f"log.run_name: {config.log.run_name!r} is not inside log.save_dir ({config.log.save_dir}); write a plain name")
    return folder


def default_name(config: RunConfig, moment: str | None = None) -> str:
    """A name from the model, the algorithm and the time.

    Args:
        moment: stands for the time, which is otherwise now.
    """
    moment = time.strftime("%Y%m%d_%H%M%S") if moment is None else moment
    return f"{config.model.model_type}_{config.model.finetune_type}_{config.train.trainer_type}_{moment}"


def holds_run(folder: Path) -> bool:
    """Whether the folder has files of a run, with which those of a new one would mix."""
    metrics = folder / "metrics.jsonl"
    with file_errors("log.save_dir", folder, WRITABLE):
        return (metrics.is_file() and metrics.stat().st_size > 0) or bool(checkpoints(folder / "checkpoints"))


def require_free(folder: Path) -> None:
    """Raises the errors of `RunFolder` without writing anything, for `--check`.

    Raises:
        UserError: another run uses the folder, or it cannot be written to.
    """
    with file_errors("log.save_dir", folder, WRITABLE):
        here = next(p for p in (folder, *folder.parents) if p.exists())
        if not here.is_dir():
            raise NotADirectoryError(ENOTDIR, os.strerror(ENOTDIR), str(here))
        if not os.access(here, os.W_OK | os.X_OK):
            raise PermissionError(EACCES, os.strerror(EACCES), str(here))
        if (folder / LOCK).exists() and folder.resolve() not in _held:
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC)
            _take(lock, folder)
            os.close(lock)


class RunFolder:
    """The claim on a folder. As a context manager: an error inside restores the folder, and removes a new one.

    Args:
        path: the folder of the run; with `new`, a number is appended to the name if the folder exists.
    """

    def __init__(self, path: Path, new: bool = False):
        with file_errors("log.save_dir", path, WRITABLE):
            missing = [p for p in (path, *path.parents) if not p.exists()]
            self.path = _create(path) if new else path
            self.made = [self.path, *(p for p in missing if p != path)] if new else missing
            self.lock, self.made_lock = _lock(self.path)
        _held[self.path.resolve()] = self.lock
        self.begun = False

    def begin(self, config: RunConfig) -> None:
        """Writes the config. From here on the folder belongs to the run, which an earlier summary would say has ended."""
        self.begun = True
        os.ftruncate(self.lock, 0)
        os.pwrite(self.lock, json.dumps({"process": os.getpid(), "machine": socket.gethostname()}).encode(), 0)
        beside = self.path / ".config.yaml"
        beside.write_text(dump_config(config), encoding="utf-8")
        beside.replace(self.path / "config.yaml")
        (self.path / "summary.md").unlink(missing_ok=True)

    def release(self) -> None:
        """Releases the claim."""
        if _held.get(self.path.resolve()) != self.lock:
            return
        if self.begun or self.made_lock:
            with suppress(FileNotFoundError):
                (self.path / LOCK).unlink()
        os.close(_held.pop(self.path.resolve()))
        if self.path.parent.name == TEST:
            shutil.rmtree(self.path, ignore_errors=True)
            for folder in (self.path.parent, *self.made):
                with suppress(OSError):  # another run is in it
                    folder.rmdir()

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            return
        if not self.begun and self.path in self.made:
            shutil.rmtree(self.path, ignore_errors=True)
        self.release()
        for folder in self.made if not self.begun else ():
            with suppress(OSError):  # another run has claimed it meanwhile
                folder.rmdir()


def _create(path: Path) -> Path:
    """Creates a folder of this name, or with the first free number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in range(1, sys.maxsize):
        folder = path if number == 1 else path.with_name(f"{path.name}_{number}")
        with suppress(FileExistsError):
            folder.mkdir()
            return folder
    raise AssertionError


def _lock(folder: Path) -> tuple[int, bool]:
    """(the open lock, whether its file is new).

    Raises:
        UserError: another process has it.
    """
    if (own := _held.pop(folder.resolve(), None)) is not None:
        os.close(own)
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        new = not (folder / LOCK).exists()
        try:
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:
            continue  # a refused start has just removed its folder
        if not _take(lock, folder):
            return lock, new
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), (folder / LOCK).stat()):
                return lock, new
        os.close(lock)  # its owner has just removed it: lock the new one


def _take(lock: int, folder: Path) -> bool:
    """Locks an open file. Prints a line and returns False if the file system has no locks.

    Raises:
        UserError: another process holds the lock. The file is closed then.
    """
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (EACCES, EAGAIN):
            note(f"{folder} cannot be locked ({error.strerror}): do not start another run in it")
            return False
        who = _owner(lock)
        os.close(lock)
        raise UserError(f"{folder} is in use by another run{who}; choose another run_name, or wait for its end") from error
    return True


def _owner(lock: int) -> str:
    """A phrase that names the owner of the folder, from the lock file."""
    try:
        owner = json.loads(os.pread(lock, 4096, 0))
        return f" (process {int(owner['process'])} on {str(owner['machine'])[:64]})"
    except (ValueError, KeyError, TypeError, OverflowError):
        return ""


def archive_later_checkpoints(folder: Path, epoch: int) -> str | None:
    """Moves the checkpoints after an epoch, and a copy of the metrics after it, to an `abandoned-<number>` folder.

    The name of the target folder tells from the first step on which ones are abandoned. So an interruption leaves none of them in use, and
    the next start moves the rest.

    Returns:
        A line that says where they are; None if there were none.
    """
    home = folder / "checkpoints"
    later, begun = [path for number, path in numbered(home) if number > epoch], unfinished_archive(home)
    if not later and begun is None:
        return None
    number = begun[0] if begun else next(n for n in range(1, sys.maxsize) if not (home / f"abandoned-{n}").exists())
    aside, moving = home / f"abandoned-{number}", home / f".abandoned-{number}-after-{epoch}"
    if begun:
        (home / f".abandoned-{number}-after-{begun[1]}").rename(moving)
    else:
        moving.mkdir()
    metrics = folder / "metrics.jsonl"
    lines = [line for line in read_metrics(metrics) if line["step"] > epoch] if metrics.is_file() else []
    (moving / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    for checkpoint in reversed(later):
        checkpoint.rename(moving / checkpoint.name)
    moving.rename(aside)
    moved = [path.name for _, path in numbered(aside)]
    names = " to ".join(dict.fromkeys((moved[0], moved[-1]))) if moved else "no checkpoint"
    return f"goes on after epoch {epoch}: {names}, and the metrics since, are set aside in {aside}"
