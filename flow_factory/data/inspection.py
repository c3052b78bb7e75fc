"""Inspects every condition file of the rows before a run begins, and remembers which were intact."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from flow_factory.data.ledger import Ledger
from flow_factory.data.media import check_media, check_whole
from flow_factory.data.media_checks import Extent, Kind
from flow_factory.utils.terminal import bar

FORMAT = 1
"""Of the record: to be raised when files are looked at more closely."""


class Record(Ledger):
    """Files that were decoded to their end, by path, size and time of change, and their sizes."""

    def __init__(self, file: Path):
        super().__init__(file, FORMAT)

    def key(self, path: str, kind: Kind) -> str | None:
        """What a file is known by; None where there is none."""
        try:
            stat = Path(path).stat()
        except OSError:
            return None
        return f"{kind} {stat.st_size} {stat.st_mtime_ns} {Path(path).absolute()}"


def inspect_files(
    files: Mapping[tuple[str, Kind], str], record: Record, mine: Iterable[tuple[str, Kind]] | None = None, progress: bool = True
) -> dict[str, Extent]:
    """Looks at each file once.

    Args:
        files: (path, kind) -> `file:line` of the data set, for messages.
        mine: those of them that this process decodes, where several share the work; of the others only the header is read.

    Returns:
        The size of each that was decoded, now or for the record.

    Raises:
        DataError: see `check_media`, `check_whole`.
    """
    decoded, chosen = dict[str, Extent](), set(files if mine is None else mine)
    try:
        for (path, kind), where in bar(files.items(), "checking images and videos", "file", progress, delay=2):
            key = record.key(path, kind)
            if key is not None and key in record.known:
                decoded[path] = record.known[key]
                continue
            check_media(path, where, kind)  # an absurd size is refused before anything is decoded
            if key is not None and (path, kind) in chosen:
                decoded[path] = record.new[key] = check_whole(path, where, kind)
    finally:
        record.save()
    return decoded
