"""Processes of one group, forked from one that has imported everything: what imports cost is paid once for all of them."""

import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing import start_processes

from flow_factory.distributed import liveness
from tests.tiny.patience import Watch
from tests.tiny.run import environment, free_port

SAID = "said"


def side_by_side(processes: int, folder: Path, do: Callable[..., None], *given: Any) -> None:
    """`do(rank, *given)` in each of so many processes, with `folder` as their working directory, as torchrun's workers would have it.

    `do` is found by its name, as pickle finds it. Its output is in `folder`, a file for each process.

    Raises:
        ProcessException: one of them failed; with its traceback.
        TimeoutError: they hang, and are killed.
    """
    multiprocessing.set_forkserver_preload([do.__module__, __name__])
    watch = Watch(folder)
    context = start_processes(member, (processes, free_port(), folder, do, given), processes, join=False, start_method="forkserver")
    try:
        while not context.join(timeout=0.5):
            watch.check(f"{do.__qualname__} of {processes} processes, whose output is in {SAID}.*,")
    finally:
        for process in context.processes:
            process.kill()


def member(rank: int, processes: int, port: int, folder: Path, do: Callable[..., None], given: tuple[Any, ...]) -> None:
    """What a process is first: it has the folder, the environment, the streams and the thread of one of a group, and does `do`."""
    group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_PORT": port}
    mine = environment(**{k: str(v) for k, v in group.items()}, MASTER_ADDR="127.0.0.1") if processes > 1 else environment()
    os.environ.clear()
    os.environ.update(mine)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    with Path(f"{SAID}.{rank}").open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    torch.set_num_threads(1)
    do(rank, *given)
    liveness.leave()
