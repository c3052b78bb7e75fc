"""Reading of a checkpoint once for each machine: one process downloads it and reads the files in order into the page cache.

Weights are mapped from their files, and would otherwise be read page by page at first use, which is slow on network disks.
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
"""The number of bytes that are read at a time."""
ROOM = 0.5
"""The share of the free main memory that the files may take, so that they do not displace other pages."""


def first_here() -> bool:
    """Whether this is the first process of its machine."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def once_a_machine(fetch: Callable[[], object], missing: Callable[[], bool]) -> None:
    """The first process of each machine fetches what is missing there. The others wait as long as it makes progress.

    Raises:
        RendezvousError: a process has ended, or makes no progress.
    """
    work = Work("downloading")
    work.beat("downloading the checkpoint")
    if first_here() and missing():
        fetch()
    work.wait()


@contextmanager
def read_ahead(files: Sequence[Path]) -> Iterator[None]:
    """Inside, the first process of the machine reads the files sequentially in a background thread.

    Files larger than `ROOM` of the free memory are not read, because the first pages would be evicted before they are used.
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
        logger.warning("%s: %s; it is read page by page", error.filename, error.strerror)  # its user reports the error


def _piece(file: Path, begin: int, buffer: bytearray) -> None:
    with file.open("rb", buffering=0) as stream:
        stream.seek(begin)
        stream.readinto(buffer)
