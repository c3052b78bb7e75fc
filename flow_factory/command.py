"""What `python -m flow_factory` does. It imports nothing before the current folder is out of the way."""

import os
import sys


def run() -> None:
    """The program, with the current folder behind all others: a `queue.py` (or `pathlib.py`) there is nobody's. Does not return."""
    if sys.path[0] in ("", os.getcwd()):  # noqa: PTH109
        sys.path.append(sys.path.pop(0))
    from flow_factory.cli import main

    sys.exit(main())
