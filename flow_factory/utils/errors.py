"""Errors that the user can fix. They are shown as one message, without a stack trace."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""A full disk, a used-up quota, a limit on the size of files."""
LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket closed", "remote process exited")
"""Phrases in messages of gloo, NCCL and torch's store when another process has ended."""
LATE = ("Timed out waiting", "Application timeout caused pair closure", "collective operation timeout")
"""Phrases in messages of gloo and NCCL when another process did not join a collective in time, or aborted it."""

LONGEST = 2000
"""The largest number of characters of a message. The middle of a longer one is left out."""


def plain(text: str) -> str:
    """The text as one printable line. A message may quote names and values with any characters."""
    line = re.sub(r"\s*\n\s*", " ", text.strip())
    if len(line) > LONGEST:
        line = f"{line[: LONGEST * 3 // 4]} ... {line[-LONGEST // 4 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


class UserError(ValueError):
    """One line that says what is wrong, where, and what would be right.

    Attributes:
        everywhere: whether all processes raise it at the same place, so that they can still save together.
    """

    everywhere = False

    def __str__(self) -> str:
        return plain(super().__str__())

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in the place of a traceback."""
        return [f"{type(self).__name__}: {self}"]


Error = TypeVar("Error", bound=UserError)


def of_all(error: Error) -> Error:
    """Marks an error that all processes raise at the same place, and returns it."""
    error.everywhere = True
    return error


class RunError(UserError):
    """The run failed although the config is valid: exit code 1."""


class SaveError(RunError):
    """A checkpoint could not be written. The message has the reason and the last complete checkpoint."""


class GradientError(RunError):
    """The gradient is NaN or infinite. The optimiser did not step."""


class NumbersError(RunError):
    """The model's output is NaN or infinite."""


class RewardError(RunError):
    """A reward failed, returned something that is no score, or has too many missing scores. The message names it."""


class FailedElsewhere(RunError):
    """Another process failed and reports the error. This process stops without a message."""


class RowError(RunError):
    """A pipeline failed on a row, or the row's line has changed. The message has its line in the data set."""


class RendezvousError(RunError):
    """Processes did not reach a rendezvous or a barrier. The message has the place, the time waited, and the missing processes."""


class ProcessLost(RendezvousError):
    """Another process has ended, and this one cannot continue without it. The message has its rank and its last activity."""


def lost(error: BaseException) -> bool:
    """Whether the error was caused by the death or the delay of another process."""
    return isinstance(error, RuntimeError) and any(text in str(error) for text in (*LOST, *LATE))


def timed_out(error: BaseException) -> bool:
    """Whether another process did not join a collective in time."""
    return isinstance(error, RuntimeError) and any(text in str(error) for text in LATE)


@contextmanager
def file_errors(key: str, path: str | Path, right: str, kind: type[UserError] = UserError) -> Iterator[None]:
    """Turns errors of the file system (permissions, names, missing folders) into one line.

    The error of a full disk is passed on: the run reports it with the last complete checkpoint.

    Args:
        key: the config key or the role of the file, with which the message begins.
        path: the file or folder, if the error does not name it.
        right: a hint for the user.

    Raises:
        UserError: of the given kind: `key: path: reason; right`.
    """
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise
        raise kind(f"{key}: {error.filename or path}: {error.strerror or error}; {right}") from error
