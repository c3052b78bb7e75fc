"""Errors that the user can fix: shown as one message, without a stack trace."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""A full disk, a used-up quota, a limit on the size of files."""
LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket closed", "remote process exited")
"""What gloo, NCCL and torch's store say when another process is gone."""
LATE = ("Timed out waiting", "Application timeout caused pair closure", "collective operation timeout")
"""What gloo and NCCL say when another process did not come to a collective in time, or has given it up."""

LONGEST = 2000
"""Characters of a message; what a longer one quotes is cut out of its middle."""


def plain(text: str) -> str:
    """The text as one line that any terminal shows: it may quote names and values of any kind."""
    line = re.sub(r"\s*\n\s*", " ", text.strip())
    if len(line) > LONGEST:
        line = f"{line[: LONGEST * 3 // 4]} ... {line[-LONGEST // 4 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


class UserError(ValueError):
    """Says what is wrong, where, and what would be right, in one line.

    Attributes:
        everywhere: whether all processes stop for it at the same place, and so can still save together.
    """

    everywhere = False

    def __str__(self) -> str:
        return plain(super().__str__())


Error = TypeVar("Error", bound=UserError)


def of_all(error: Error) -> Error:
    """The error, which all processes raise at the same place."""
    error.everywhere = True
    return error


class RunError(UserError):
    """The config is right, and the run failed nevertheless: exit code 1."""


class SaveError(RunError):
    """A checkpoint could not be written; the message says why, and which is the last whole one."""


class GradientError(RunError):
    """The gradient is no number, and was not stepped."""


class NumbersError(RunError):
    """The model makes NaN or inf."""


class RewardError(RunError):
    """A reward failed, returned what is no score, or missed too many; the message names it."""


class FailedElsewhere(RunError):
    """Something failed on another process, which says what; this one stops with it and is silent."""


class RowError(RunError):
    """A pipeline failed on a row, or its line is no longer what it was; the message has its line in the data set."""


class MeetingError(RunError):
    """Processes that did not come together, or no longer are; the message says where, how long was waited, and for whom."""


class ProcessLost(MeetingError):
    """Another process has ended, and this one cannot go on without it; the message says which, and what it was doing."""


def lost(error: BaseException) -> bool:
    """Whether it comes of another process's death, or delay."""
    return isinstance(error, RuntimeError) and any(text in str(error) for text in (*LOST, *LATE))


def timed_out(error: BaseException) -> bool:
    """Whether another process did not come to a collective in time."""
    return isinstance(error, RuntimeError) and any(text in str(error) for text in LATE)


@contextmanager
def file_errors(key: str, path: str | Path, right: str, kind: type[UserError] = UserError) -> Iterator[None]:
    """The one place that turns what the file system refuses (permissions, names, missing folders) into one line.

    A full disk passes: the run says it with the last whole checkpoint.

    Args:
        key: the config key or the file's role, as the message begins.
        path: what was to be read or written, where the error does not name it.
        right: what the user may do.

    Raises:
        UserError: of the given kind: `key: path: reason; right`.
    """
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise
        raise kind(f"{key}: {error.filename or path}: {error.strerror or error}; {right}") from error
