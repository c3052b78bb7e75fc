"""`ff-train` in a process that is forked from one which has imported everything: a start in a tenth of the time, for one process alone."""

import multiprocessing
import os
import signal
import sys
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess

from flow_factory.cli import main
from tests.tiny.killed import trap
from tests.tiny.patience import Watch
from tests.tiny.side_by_side import SAID, member


def forked(*arguments: str | Path, cwd: Path, killed: str = "", **extra: str) -> CompletedProcess[str]:
    """As `tests.tiny.run.ff_train`; what it says on both streams is the stdout."""
    multiprocessing.set_forkserver_preload([__name__])
    given = (tuple(map(str, arguments)), killed, extra)
    process = multiprocessing.get_context("forkserver").Process(target=member, args=(0, 1, 0, cwd, _command, given))
    process.start()
    watch = Watch(cwd)
    try:
        while process.is_alive():
            process.join(0.2)
            watch.check(given)
    finally:
        process.kill()
        process.join()
    said = cwd / f"{SAID}.0"
    text = said.read_text()
    said.unlink()
    return CompletedProcess(given[0], process.exitcode or 0, text)


def _command(rank: int, arguments: tuple[str, ...], killed: str, extra: dict[str, str]) -> None:
    os.environ.update(extra)
    if killed:
        function, call, name = killed.split()
        trap(function, int(call), partial(os.kill, os.getpid(), signal.Signals[name]))
    sys.exit(main(arguments))
