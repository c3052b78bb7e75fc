"""What `ff-train` and `python -m flow_factory` do. It imports nothing before the current folder is out of the way."""

import os
import signal
import sys
import threading
import time
from types import FrameType

AT_ONCE = "{}: stopped at once; what is in the run's folder stays as it is"
"""What is said of a signal that ends the program; its name goes in."""


def run() -> None:
    """The program, with the current folder behind all others: a `queue.py` (or `pathlib.py`) there is nobody's. Does not return."""
    if sys.path[0] in ("", os.getcwd()):  # noqa: PTH109
        sys.path.append(sys.path.pop(0))
    former = {number: signal.signal(number, _end) for number in (signal.SIGTERM, signal.SIGINT)}  # until `main` listens
    from flow_factory.cli import main

    code = main()
    for number, handler in former.items():  # a launcher may end what has ended already, whose code must stay its own
        signal.signal(number, handler)
    leave(code)


def _end(number: int, frame: FrameType | None) -> None:
    """Ends a program that has not begun: an exception could be swallowed by the import that it falls into."""
    if os.environ.get("RANK", "0") == "0":
        os.write(2, f"{AT_ONCE.format(signal.Signals(number).name)}\n".encode())
    os._exit(130)


def leave(code: int, patience: float = 10.0) -> None:
    """Ends the process, also where a thread that a reward or a library has left behind does not: Python would wait for it for ever."""

    def cut() -> None:
        time.sleep(patience)
        print(f"note: a thread is still at work {patience:g} s after the end; the process ends without it", file=sys.stderr, flush=True)
        os._exit(code)

    threading.Thread(target=cut, daemon=True).start()
    sys.exit(code)
