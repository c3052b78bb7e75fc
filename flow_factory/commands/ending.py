"""How a command ends: its last line and its exit code."""

import logging
import signal
import sys
import time

from flow_factory.command import AT_ONCE
from flow_factory.distributed import liveness
from flow_factory.distributed.launch import already_reported
from flow_factory.distributed.process_monitor import FAILED
from flow_factory.utils import user_code
from flow_factory.utils.background import busy
from flow_factory.utils.errors import FULL, FailedElsewhere, ProcessLost, RunError, UserError, lost, plain
from flow_factory.utils.signals import Listener, Stopped

logger = logging.getLogger(__name__)
SILENT = 10.0
"""Seconds in which a process that failed on its own has left."""


def disk_full(error: Exception) -> bool:
    """Whether it is of a full disk, a used-up quota or a limit on files, as Python says it, or Rust below safetensors."""
    return (isinstance(error, OSError) and error.errno in FULL) or str(error).endswith(tuple(f"(os error {code})" for code in FULL))


def ended_by(error: BaseException, listener: Listener) -> BaseException:
    """What ended the program: an error, or a signal if it came first. A launcher stops those that are left when one has died."""
    if not isinstance(error, Stopped):  # a library may have taken the signal for an error of its own
        return error if listener.signal is None or isinstance(error, UserError) else Stopped(listener.signal.name)
    overtaken = error.__context__
    return overtaken if overtaken is not None and (isinstance(overtaken, UserError) or lost(overtaken)) else error


def complain(error: Exception | str) -> None:
    """Prints an error, unless another process has."""
    if not already_reported():
        print(f"error: {error}", file=sys.stderr)


def explain(error: BaseException) -> int:
    """Says in a line what has ended the program; the exit code. What has no line of its own is raised again."""
    if isinstance(error, FailedElsewhere):
        return second()
    if isinstance(error, ProcessLost) or lost(error):
        complain(error if isinstance(error, ProcessLost) else liveness.why_lost(error))
        return second()
    if isinstance(error, UserError):
        complain(error)
        if error.__cause__ is not None:
            logger.info("where it comes from:", exc_info=error.__cause__)
        return 1 if isinstance(error, RunError) else 2
    if isinstance(error, KeyboardInterrupt):
        return stopped(error)
    if already_reported():  # where several processes fail, only the first shows its trace: the others' come of its leaving
        return 1
    if (line := user_code.owner_of(error)) is not None:
        print(f"error: {plain(line)}", file=sys.stderr)
        logger.info("where it comes from:", exc_info=error)
        return 1
    if isinstance(error, OSError) and error.filename is not None:  # what the file system refused and nobody has asked before
        print(f"error: {error.filename}: {error.strerror or error}", file=sys.stderr)
        return 1
    raise error


def second() -> int:
    """The exit code of a process that ends because another has: the launcher ends those that are left, and names the first that went."""
    liveness.leave(FAILED)
    if not busy():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(SILENT)
    return 1


def stopped(what: object) -> int:
    """Says what ended the program, unless another process has; the exit code. A launcher stops those that are left when one has died."""
    if (gone := liveness.who_is_gone()) is not None:
        complain(gone)
        return second()
    if not already_reported():
        print(AT_ONCE.format(str(what) or "interrupted"), file=sys.stderr)
    return 130
