"""What a command that runs in the tests' process changes there for good."""

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

OF_PYTEST = "PYTEST_CURRENT_TEST"


@contextmanager
def restored() -> Iterator[None]:
    """Leaves the environment, the logs' settings and the hook of dying threads as they were: a command's own process ends with them."""
    environment, reports, hook = dict(os.environ), logging.raiseExceptions, threading.excepthook
    root, ours = logging.getLogger(), logging.getLogger("flow_factory")
    filters, levels = {handler: list(handler.filters) for handler in root.handlers}, (root.level, ours.level)
    yield
    for name in (environment.keys() | os.environ.keys()) - {OF_PYTEST}:  # one by one: a thread may be reading it
        if name not in environment:
            del os.environ[name]
        elif os.environ.get(name) != environment[name]:
            os.environ[name] = environment[name]
    logging.raiseExceptions, threading.excepthook = reports, hook
    for handler, before in filters.items():
        handler.filters[:] = before
    root.setLevel(levels[0])
    ours.setLevel(levels[1])
