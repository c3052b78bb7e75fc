"""Inspects every condition file of the rows before a run begins, and records which files are intact."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from flow_factory.data.ledger import Ledger
from flow_factory.data.media import check_media, check_whole
from flow_factory.data.media_checks import Extent, Kind
from flow_factory.utils.terminal import bar

FORMAT = 1
"""The version of the record. Raise it when files are checked more strictly."""


class Record(Ledger):
    """The dimensions of files that were fully decoded, by path, size and modification time."""

    def __init__(self, file: Path):
        super().__init__(file, FORMAT)

    def key(self, path: str, kind: Kind) -> str | None:
        """The key of a file; None if there is no such file."""
        try:
            stat = Path(path).stat()
        except OSError:
            return None
        return f"{kind} {stat.st_size} {stat.st_mtime_ns} {Path(path).absolute()}"


def inspect_files(
    files: Mapping[tuple[str, Kind], str], record: Record, share: Iterable[tuple[str, Kind]] | None = None, progress: bool = True
) -> dict[str, Extent]:
    """Checks each file once.

    Args:
        files: (path, kind) -> `file:line` of the data set, for messages.
        share: the files that this process decodes, if several processes share the work. Of the others only the header is read.

    Returns:
        (width, height, frames) of each file that was decoded, now or earlier, by path.

    Raises:
        DataError: see `check_media`, `check_whole`.
    """
    decoded, to_decode = dict[str, Extent](), set(files if share is None else share)
    try:
        for (path, kind), where in bar(files.items(), "checking images and videos", "file", progress, delay=2):
            key = record.key(path, kind)
            if key is not None and key in record.known:
                decoded[path] = record.known[key]
                continue
            check_media(path, where, kind)  # refuses a huge size before anything is decoded
            if key is not None and (path, kind) in to_decode:
                decoded[path] = record.new[key] = check_whole(path, where, kind)
    finally:
        record.save()
    return decoded
