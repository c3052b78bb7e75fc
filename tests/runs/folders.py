"""Folders of runs: what is in them, and processes that want the same one."""

import hashlib
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from flow_factory.config import load_config
from flow_factory.runs.run_folder import RunFolder
from flow_factory.utils.errors import UserError

STATES = ("log.save_model_only=false", "log.save_freq=1", "eval.eval_freq=0")
OWN = "model.resume_path=save/run"
MORE = (OWN, "train.max_epochs=3")


def tree(folder: Path) -> dict[str, str]:
    """All that is in a folder, with the digests of its files, but for the cache: the rows that a start has encoded are right for others."""
    paths = [p for p in folder.rglob("*") if "cache" not in p.relative_to(folder).parts]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "" for p in paths}


def epochs(folder: Path) -> list[str]:
    return sorted(p.name for p in (folder / "checkpoints").iterdir())


@contextmanager
def children(count: int, work: Callable[[int], str]) -> Iterator[list[str]]:
    """What `count` processes say of the same work, which they begin at once; they live on inside the context."""
    pipes, pids, go = [], [], os.pipe()
    for number in range(count):
        pipes.append(os.pipe())
        pids.append(os.fork())
        if not pids[-1]:
            os.read(go[0], 1)
            try:
                said = work(number)
            except UserError as error:
                said = f"refused: {error}"
            os.write(pipes[-1][1], said.encode())
            signal.pause()
    os.write(go[1], b"." * count)
    try:
        yield [os.read(read, 4096).decode() for read, _ in pipes]
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


CLAIMS: list[RunFolder] = []


def claimed(path: Path, new: bool = False) -> str:
    CLAIMS.append(RunFolder(path, new))
    CLAIMS[-1].begin(load_config(path.parents[1] / "tiny.yaml"))
    return CLAIMS[-1].path.name
