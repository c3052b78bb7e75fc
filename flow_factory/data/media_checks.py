"""Checks that a file that a row names exists, is what it should be, and is not too large. Needs no torch."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flow_factory.config.media_arguments import InputKind as Kind
from flow_factory.data.reader import DataError, listing
from flow_factory.utils.errors import file_errors
from flow_factory.utils.files import kind_of_file
from flow_factory.utils.registry import nearest

NOUNS: dict[Kind, str] = {"image": "an image", "mask": "a mask", "video": "a video", "audio": "a sound"}
Extent = tuple[int, int, int]
"""Width, height, frames; of a sound: channels, Hz, samples of a channel."""
MOST_IMAGE = 64_000_000
"""The most pixels of an image, or of one frame."""
MOST_VIDEO = 1_000_000_000
"""The most pixels of all frames of a video together: 4 GB in Pillow."""
MAGIC = {b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG", b"RIFF": "WebP", b"GIF8": "GIF", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"BM": "BMP"}


def first_bytes(path: Path) -> bytes:
    """The first 16 bytes of a file."""
    with path.open("rb") as file:
        return file.read(16)


def image_format(path: Path) -> str | None:
    """The format of an image by its first bytes; None: it is not a known image."""
    head = first_bytes(path)
    known = next((name for magic, name in MAGIC.items() if head.startswith(magic)), None)
    return None if known == "WebP" and head[8:12] != b"WEBP" else known


def require_there(path: str, where: str, kind: Kind) -> None:
    """Raises:
    DataError: no file is at the path. `check_media` checks its content.
    """
    if not os.path.isfile(path):  # noqa: PTH113 (pathlib raises for a name that is too long)
        check_file(Path(path), where, kind)


def check_file(path: Path, where: str, kind: Kind) -> None:
    """Raises:
    DataError: there is no readable file at the path.
    """
    expected = NOUNS[kind]
    noun = expected.partition(" ")[2]
    with file_errors(where, path, f"{expected} that can be read belongs there", DataError):
        if os.path.lexists(path):
            if (other := kind_of_file(path)) is not None:
                raise DataError(f"{where}: {path}: {other}, where {expected} belongs")
            with path.open("rb") as file:
                file.read(1)  # some special files open and fail only when they are read
        elif path.parent.is_dir():
            names = [p.name for p in path.parent.iterdir()]
            raise DataError(f"{where}: {path}: no such {noun}.{nearest(path.name, names)} Its folder has {listing(path.parent)}")
        else:
            above = next((p for p in path.absolute().parents if p.is_dir()), Path("/"))
            base = "image" if kind == "mask" else kind
            raise DataError(
                f"{where}: {path}: no such {noun}, nor its folder; {above} has {listing(above)}. Relative names start at data.{base}_dir"
            )


def check_size(path: Path, where: str, width: int, height: int, frames: int) -> None:
    """Raises:
    DataError: a frame is larger than `MOST_IMAGE`, or all frames together are larger than `MOST_VIDEO`.
    """
    if width * height > MOST_IMAGE:
        raise DataError(f"{where}: {path}: {megapixels(width * height)} megapixels ({width} x {height}); at most {megapixels(MOST_IMAGE)}")
    if width * height * frames > MOST_VIDEO:
        raise DataError(
            f"{where}: {path}: {frames} frames of {width} x {height} are {megapixels(width * height * frames)} megapixels; "
            f"at most {megapixels(MOST_VIDEO)}"
        )


def megapixels(pixels: int) -> str:
    """Pixels in millions, as text."""
    return f"{round(pixels / 1e6, 1):,g}"


def reason_of(error: Exception) -> str:
    """The error's text without the path and the numbers that av adds."""
    return " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__


def open_container(path: Path, where: str, formats: Sequence[str], what: str, readable: str) -> Any:
    """Opens a file with FFmpeg, which may read this file and these formats alone. No packet is read.

    Args:
        formats: by FFmpeg's names.
        what: the file should be, for the message.
        readable: names of the formats, for the message.

    Raises:
        DataError: it is something else, or damaged.
    """
    import av

    try:
        return av.open(f"file:{path}", options={"format_whitelist": ",".join(formats), "protocol_whitelist": "file"})
    except (av.FFmpegError, OSError) as error:
        reason = "of another kind" if isinstance(error, av.ArgumentError) else reason_of(error)
        raise DataError(f"{where}: {path}: not {what}, or damaged or truncated ({reason}); {readable} can be read") from error
