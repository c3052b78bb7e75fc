"""`python -m tests.tiny.killed MODULE:FUNCTION CALL SIGNAL ARGUMENTS` is `ff-train ARGUMENTS` that sends itself a signal when the function
is called for the CALL-th time, before it runs."""

import importlib
import itertools
import operator
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from flow_factory.cli import main


def holder_of(path: str) -> tuple[Any, str]:
    """(the module or class that has a function, its name there)"""
    module, _, attributes = path.partition(":")
    *owner, name = attributes.split(".")
    found = importlib.import_module(module)
    return (operator.attrgetter(".".join(owner))(found) if owner else found), name


def trap(path: str, call: int, fault: Callable[[], None]) -> None:
    """Puts the fault before one call of a function."""
    holder, name = holder_of(path)
    original, calls = getattr(holder, name), itertools.count(1)

    def trapped(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == call:
            fault()
        return original(*args, **kwargs)

    setattr(holder, name, trapped)


if __name__ == "__main__":
    trap(sys.argv[1], int(sys.argv[2]), partial(os.kill, os.getpid(), signal.Signals[sys.argv[3]]))
    sys.exit(main(sys.argv[4:]))
