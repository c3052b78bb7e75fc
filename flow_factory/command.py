"""What `python -m flow_factory` does. It imports nothing before the current folder is out of the way."""

import os
import sys
import threading
import time


def run() -> None:
    """The program, with the current folder behind all others: a `queue.py` (or `pathlib.py`) there is nobody's. Does not return."""
    if sys.path[0] in ("", os.getcwd()):  # noqa: PTH109
        sys.path.append(sys.path.pop(0))
    from flow_factory.cli import main

    leave(main())


def leave(code: int, patience: float = 10.0) -> None:
    """Ends the process, also where a thread that a reward or a library has left behind does not: Python would wait for it for ever."""

    def cut() -> None:
        time.sleep(patience)
        print(f"note: a thread is still at work {patience:g} s after the end; the process ends without it", file=sys.stderr, flush=True)
        os._exit(code)

    threading.Thread(target=cut, daemon=True).start()
    sys.exit(code)
