"""The end of a command: its last line and its exit code."""

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
"""Seconds within which a process that failed by itself has exited."""


def disk_full(error: Exception) -> bool:
    """Whether the error is a full disk, an exhausted quota or a file size limit, as reported by Python or by safetensors' Rust code."""
    return (isinstance(error, OSError) and error.errno in FULL) or str(error).endswith(tuple(f"(os error {code})" for code in FULL))


def ended_by(error: BaseException, listener: Listener) -> BaseException:
    """The cause of the end: the error, or a signal that came before it. A launcher signals the remaining processes after a death."""
    if not isinstance(error, Stopped):  # a library may have turned the signal into its own error
        return error if listener.signal is None or isinstance(error, UserError) else Stopped(listener.signal.name)
    overtaken = error.__context__
    return overtaken if overtaken is not None and (isinstance(overtaken, UserError) or lost(overtaken)) else error


def complain(error: Exception | str) -> None:
    """Prints an error, unless another process has printed one."""
    if not already_reported():
        print(f"error: {error}", file=sys.stderr)


def explain(error: BaseException) -> int:
    """Prints a line about the end of the program and returns the exit code. Unexpected errors are raised again."""
    if isinstance(error, FailedElsewhere):
        return second()
    if isinstance(error, ProcessLost) or lost(error):
        complain(error if isinstance(error, ProcessLost) else liveness.lost_process(error))
        return second()
    if isinstance(error, UserError):
        complain(error)
        if error.__cause__ is not None:
            logger.info("the cause of it:", exc_info=error.__cause__)
        return 1 if isinstance(error, RunError) else 2
    if isinstance(error, KeyboardInterrupt):
        return stopped(error)
    if already_reported():  # only the first of several failing processes shows its stack trace: the others fail because of it
        return 1
    if (line := user_code.owner_of(error)) is not None:
        print(f"error: {plain(line)}", file=sys.stderr)
        logger.info("the cause of it:", exc_info=error)
        return 1
    if isinstance(error, OSError) and error.filename is not None:  # an error of the file system that no check has found
        print(f"error: {error.filename}: {error.strerror or error}", file=sys.stderr)
        return 1
    raise error


def second() -> int:
    """The exit code of a process that ends because of another's end. The launcher reports the first one."""
    liveness.leave(FAILED)
    if not busy():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(SILENT)
    return 1


def stopped(what: object) -> int:
    """Prints the signal that ended the program, unless another process has printed it. Returns the exit code."""
    if (gone := liveness.who_is_gone()) is not None:
        complain(gone)
        return second()
    if not already_reported():
        print(AT_ONCE.format(str(what) or "interrupted"), file=sys.stderr)
    return 130
