"""A checkpoint comes to a machine once: one of its processes downloads it and reads the files in order, and the others find them in memory.

Weights are mapped from their files, and would be read page by page as they are first used: by network disks that is slow.
"""

import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from flow_factory.distributed.barriers import Work
from flow_factory.utils.terminal import bar

logger = logging.getLogger(__name__)

PIECE = 2**24
"""Bytes that are read at a time."""
ROOM = 0.5
"""Of the main memory that is free, what the files may take: they must not drive out what is used."""


def first_here() -> bool:
    """Whether this is the first process of its machine."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def once_a_machine(fetch: Callable[[], object], missing: Callable[[], bool]) -> None:
    """Has the first process of each machine fetch what is missing there; the others wait as long as it goes on.

    Raises:
        MeetingError: a process has ended, or stands still.
    """
    work = Work("downloading")
    work.beat("downloading the checkpoint")
    if first_here() and missing():
        fetch()
    work.wait()


@contextmanager
def read_ahead(files: Sequence[Path]) -> Iterator[None]:
    """Inside, the first process of the machine reads the files from their begin to their end, beside what is done with them meanwhile.

    Where they are larger than `ROOM` of the free memory, none is read: the first pages would be gone before they are used.
    """
    sizes = [(file, file.stat().st_size) for file in files]
    if not first_here() or sum(size for _, size in sizes) > ROOM * psutil.virtual_memory().available:
        yield
        return
    enough = threading.Event()
    reader = threading.Thread(target=_read, args=(sizes, enough), name="read ahead", daemon=True)
    reader.start()
    try:
        yield
    finally:
        enough.set()
        reader.join()


def _read(sizes: Sequence[tuple[Path, int]], enough: threading.Event) -> None:
    pieces = [(file, begin) for file, size in sizes for begin in range(0, size, PIECE)]
    buffer, main = bytearray(PIECE), os.environ.get("RANK", "0") == "0"
    try:
        for file, begin in bar(pieces, "reading the checkpoint", f"x{PIECE >> 20}MiB", main):
            if enough.is_set():
                return
            _piece(file, begin, buffer)
    except OSError as error:
        logger.warning("%s: %s; it is read page by page", error.filename, error.strerror)  # who uses it will say what is wrong with it


def _piece(file: Path, begin: int, buffer: bytearray) -> None:
    with file.open("rb", buffering=0) as stream:
        stream.seek(begin)
        stream.readinto(buffer)
