"""Checks of paths before they are read or written. It imports only the standard library."""

import os
import stat
from pathlib import Path
from tempfile import TemporaryDirectory

from flow_factory.utils.errors import UserError, file_errors

KINDS = {
    stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
}  # fmt: skip


def absolute(path: str | Path) -> Path:
    """The path from the root, without `..`. Unlike `Path.resolve`, it follows no links."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - resolve would follow links


def kind_of_file(path: str | Path) -> str | None:
    """None for a regular file; else what is there instead ("a folder", "a pipe", ...).

    Raises:
        OSError: the path does not exist, or may not be looked up.
    """
    return KINDS.get(stat.S_IFMT(Path(path).stat().st_mode))


def require_readable(path: str | Path, key: str, right: str, kind: type[UserError] = UserError) -> None:
    """Raises:
    UserError: of the given kind: the path does not exist, is not readable, or is not a file (reading a pipe or a device may never end).
    """
    with file_errors(key, path, right, kind):
        if (other := kind_of_file(path)) is not None:
            raise kind(f"{key}: {path}: {other}, where a file belongs; {right}")
        Path(path).open("rb").close()


def require_writable(folder: str | Path, key: str, right: str) -> None:
    """Checks that files can be written in a folder, which need not exist. It leaves no file behind.

    Raises:
        UserError: `key: path: reason; right`.
    """
    folder = Path(folder)
    above = next(p for p in (folder, *folder.parents) if os.path.lexists(p))  # a dangling link blocks the path, too
    with file_errors(key, folder, right):
        try:
            with TemporaryDirectory(prefix=".probe-", dir=above) as probe:
                Path(probe, folder.relative_to(above)).mkdir(parents=True, exist_ok=True)
        except OSError as error:  # its own message names the temporary file
            raise type(error)(error.errno, error.strerror) from error


def replace_text(path: Path, text: str) -> None:
    """Writes a file in one step: a reader has the old text or the new one.

    Raises:
        OSError: it cannot be written; the old one is as it was.
    """
    beside = path.with_name(f".{path.name}.tmp")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)
