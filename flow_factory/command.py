"""The entry point of `ff-train` and `python -m flow_factory`. It first moves the current folder behind Python's own modules."""

import os
import signal
import sys
import threading
import time
from types import FrameType

AT_ONCE = "{}: stopped at once; what is in the run's folder stays as it is"
"""The message about a signal that ends the program, with a place for its name."""


def run() -> None:
    """Runs the program with the current folder last on the path, so that a `queue.py` there hides no module. It does not return."""
    if sys.path[0] in ("", os.getcwd()):  # noqa: PTH109
        sys.path.append(sys.path.pop(0))
    former = {number: signal.signal(number, _end) for number in (signal.SIGTERM, signal.SIGINT)}  # until `main` installs its own handlers
    from flow_factory.cli import main

    code = main()
    for number, handler in former.items():  # a late signal of a launcher must not change the exit code
        signal.signal(number, handler)
    leave(code)


def _end(number: int, frame: FrameType | None) -> None:
    """Ends the program during its imports, where an exception could be swallowed."""
    if os.environ.get("RANK", "0") == "0":
        os.write(2, f"{AT_ONCE.format(signal.Signals(number).name)}\n".encode())
    os._exit(130)


def leave(code: int, patience: float = 10.0) -> None:
    """Ends the process even if a thread of a reward or a library is still running, for which Python would wait for ever."""

    def cut() -> None:
        time.sleep(patience)
        print(f"note: a thread is still at work {patience:g} s after the end; the process ends without it", file=sys.stderr, flush=True)
        os._exit(code)

    threading.Thread(target=cut, daemon=True).start()
    sys.exit(code)
