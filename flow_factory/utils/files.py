"""Checks of paths before anything waits for them or writes to them. Standard library alone."""

import os
import stat
from pathlib import Path
from tempfile import TemporaryDirectory

from flow_factory.utils.errors import UserError, file_errors

KINDS = {
    stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
}  # fmt: skip


def kind_of_file(path: str | Path) -> str | None:
    """What stands where a file belongs ("a folder", "a pipe", ...); None for a file.

    Raises:
        OSError: nothing is there, or it may not be asked.
    """
    return KINDS.get(stat.S_IFMT(Path(path).stat().st_mode))


def require_readable(path: str | Path, key: str, right: str, kind: type[UserError] = UserError) -> None:
    """Raises:
    UserError: of the given kind: not there, not a file (a pipe would be waited for, and a device never ends), or not to be read.
    """
    with file_errors(key, path, right, kind):
        if (other := kind_of_file(path)) is not None:
            raise kind(f"{key}: {path}: {other}, where a file belongs; {right}")
        Path(path).open("rb").close()


def require_writable(folder: str | Path, key: str, right: str) -> None:
    """Whether files can be written below a folder, which need not be there; nothing is left.

    Raises:
        UserError: they cannot, as `key: path: reason; right`.
    """
    folder = Path(folder)
    above = next(p for p in (folder, *folder.parents) if os.path.lexists(p))  # a link that leads nowhere is in the way, too
    with file_errors(key, folder, right):
        try:
            with TemporaryDirectory(prefix=".probe-", dir=above) as probe:
                Path(probe, folder.relative_to(above)).mkdir(parents=True, exist_ok=True)
        except OSError as error:  # it names the probe
            raise type(error)(error.errno, error.strerror) from error
