"""The minimum length of a video file according to the headers of its top-level boxes."""

import struct
from pathlib import Path
from typing import BinaryIO

BOXES = (b"ftyp", b"moov", b"mdat", b"moof", b"free", b"skip", b"wide", b"uuid", b"sidx", b"meta")
"""The top-level boxes of MP4 and MOV files."""


def stated_size(path: Path) -> int:
    """The bytes that an MP4, MOV, WebM or MKV must have by the lengths of its top-level boxes; 0 if it does not state them."""
    start = 0
    with path.open("rb") as file:
        if file.read(4) == b"\x1a\x45\xdf\xa3":
            file.seek(_ebml_number(file) or 0, 1)
            segment = _ebml_number(file) if file.read(4) == b"\x18\x53\x80\x67" else None
            return 0 if segment is None else file.tell() + segment
        file.seek(0)
        while len(head := file.read(16)) >= 8:
            length, kind = struct.unpack(">I4s", head[:8])
            if length == 1 and len(head) == 16:
                (length,) = struct.unpack(">Q", head[8:])
            if length < 8 or kind not in BOXES:
                break
            start += length
            file.seek(start)
    return start


def _ebml_number(file: BinaryIO) -> int | None:
    """Reads a length in Matroska's format: the zeros before the first 1 say how many bytes follow. None: all ones, unknown."""
    first = file.read(1) or b"\0"
    more = 8 - first[0].bit_length()
    value, most = int.from_bytes(first + file.read(more), "big"), (1 << 7 * (more + 1)) - 1
    return None if value & most == most else value & most
