"""Condition images and videos from disk. Needs no torch; av is imported where it is used, as it takes half a second.

Every complaint is a `DataError` that names the line of the data set, the file, what is wrong with it and what would be right.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from flow_factory.data.mp4 import save_video as save_video
from flow_factory.data.reader import DataError, listing
from flow_factory.registry import nearest
from flow_factory.types import Clip, Row

if TYPE_CHECKING:
    import av

MOST_IMAGE = 64_000_000
"""Pixels of an image, or of one frame."""
MOST_VIDEO = 1_000_000_000
"""Pixels of all frames of a video: 4 GB as Pillow keeps them."""
DECODER_ERRORS = (OSError, SyntaxError, ValueError, TypeError, KeyError, EOFError, struct.error, zlib.error)
"""What Pillow's decoders raise on files that are damaged."""
MAGIC = {b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG", b"RIFF": "WebP", b"GIF8": "GIF", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"BM": "BMP"}
BOXES = (b"ftyp", b"moov", b"mdat", b"moof", b"free", b"skip", b"wide", b"uuid", b"sidx", b"meta")
"""The outermost parts of MP4 and MOV files."""


def check_rows(rows: Iterable[Row], progress: bool = True) -> None:
    """Checks every condition file of the rows, each once. See `check_media`."""
    found: dict[tuple[str, Literal["image", "video"]], str] = {}
    for row in rows:
        for path in row.images:
            found.setdefault((path, "image"), row.source)
        for path in row.videos:
            found.setdefault((path, "video"), row.source)
    for (path, kind), where in tqdm(found.items(), "checking images and videos", unit="file", delay=2, disable=not progress):
        check_media(path, where, kind)


def check_media(path: str | Path, where: str, kind: Literal["image", "video"]) -> None:
    """Reads the header alone: the file is there, is of this kind, and is not absurdly large (`MOST_IMAGE`, `MOST_VIDEO`).

    An image is one picture of 1, 8 or 16 bits a channel, since floats and 32-bit numbers have no agreed range.

    Args:
        where: `file:line` of the data set, for the message.

    Raises:
        DataError: it is not so.
    """
    if kind == "image":
        with _image(Path(path), where):
            return
    with _video(Path(path), where) as stream:
        rate, seconds = stream.average_rate, stream.container.duration
        frames = stream.frames or (round(float(rate) * seconds / 1e6) if rate and seconds else 1)  # the duration is in microseconds
        _check_size(Path(path), where, stream.width, stream.height, frames)


def open_image(path: str | Path, where: str) -> Image.Image:
    """The whole picture in 8-bit RGB, upright by its EXIF orientation.

    Transparent parts show white. 16-bit grey is rounded to 8 bits over its whole range. Colour profiles are not applied.

    Raises:
        DataError: see `check_media`; or it is damaged or truncated.
    """
    with _image(Path(path), where) as image:
        try:
            return _rgb(ImageOps.exif_transpose(image))
        except DECODER_ERRORS as error:
            raise DataError(f"{where}: {path}: damaged or truncated ({_said(error)})") from error


def open_video(path: str | Path, where: str) -> Clip:
    """Every frame of the file's first video stream, upright by its rotation, at its mean frame rate; sound is passed over.

    Frames are taken as they come, also where their distances in time differ, and pixels as square. Of a GIF, or of a file that does not
    state its length, it cannot be seen that frames are missing at its end.

    Raises:
        DataError: see `check_media`; or it is damaged or truncated, or has no frame rate.
    """
    import av

    frames: list[Image.Image] = []
    with _video(Path(path), where) as stream:
        rate = stream.average_rate or stream.guessed_rate
        if not rate:
            raise DataError(f"{where}: {path}: has no frame rate; write it anew, e.g. as MP4")
        try:
            for packet in stream.container.demux(stream):
                decoded = packet.decode()
                if packet.is_corrupt or any(frame.is_corrupt for frame in decoded):
                    raise av.InvalidDataError(0, "a damaged packet")
                frames += [_upright(frame) for frame in decoded]
                _check_size(Path(path), where, stream.width, stream.height, len(frames))
        except av.FFmpegError as error:
            many = f"{len(frames)} of {stream.frames or '?'} frames"
            raise DataError(f"{where}: {path}: damaged or truncated after {many} ({_said(error)})") from error
    if not frames:
        raise DataError(f"{where}: {path}: no frame in it can be decoded; it is damaged or truncated")
    return Clip(frames, float(rate))


def _upright(frame: av.VideoFrame) -> Image.Image:
    """`rotation` is counter-clockwise, in degrees, as PIL's is."""
    turns = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}
    image, angle = frame.to_image(), round(frame.rotation) % 360
    return image.transpose(turns[angle]) if angle in turns else image


def _rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB on white."""
    if image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.float32)
        return Image.fromarray(np.rint(grey / 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return image.convert("RGB")


@contextmanager
def _image(path: Path, where: str) -> Iterator[Image.Image]:
    """The image with nothing but its header read."""
    _check_file(path, where, "image")
    try:
        image = Image.open(path)
        animated = getattr(image, "is_animated", False) and image.format != "MPO"  # MPO: a phone's photo with a second view
    except Image.DecompressionBombError as error:
        raise DataError(f"{where}: {path}: far more than the {_mega(MOST_IMAGE)} megapixels that an image may have ({error})") from error
    except DECODER_ERRORS as error:
        raise DataError(f"{where}: {path}: {_unread(path, error)}") from error
    with image:
        _check_size(path, where, *image.size, 1)
        if animated:
            raise DataError(f"{where}: {path}: has several pictures ({image.format}), where one belongs")
        if image.mode in ("I", "F"):
            raise DataError(f"{where}: {path}: numbers of mode {image.mode} have no agreed range; save it with 8 or 16 bits a channel")
        yield image


def _unread(path: Path, error: Exception) -> str:
    """Why a file is no image."""
    with path.open("rb") as file:
        head = file.read(16)
    if not head:
        return "an empty file"
    known = next((name for magic, name in MAGIC.items() if head.startswith(magic)), None)
    if known and not (known == "WebP" and head[8:12] != b"WEBP"):
        return f"a {known} that is damaged or truncated" + f" ({_said(error)})" * (not isinstance(error, UnidentifiedImageError))
    if not isinstance(error, UnidentifiedImageError):
        return f"cannot be read ({_said(error)})"
    return f"not an image that can be read, which PNG, JPEG and WebP are; it begins with {head!r}"


@contextmanager
def _video(path: Path, where: str) -> Iterator[Any]:
    """The first video stream, with no packet read."""
    import av

    _check_file(path, where, "video")
    if (size := path.stat().st_size) < (stated := _stated_size(path)):  # av would take this for the end of the video
        raise DataError(f"{where}: {path}: truncated: it has {size:,} bytes of at least {stated:,}")
    try:
        container = av.open(str(path))
    except (av.FFmpegError, OSError) as error:
        raise DataError(f"{where}: {path}: not a video, or damaged or truncated ({_said(error)}); MP4, WebM and MKV can be read") from error
    with closing(container):
        if container.format.name == "image2" or container.format.name.endswith("_pipe"):
            raise DataError(f"{where}: {path}: an image, where a video belongs; images stand in the column 'image' or 'images'")
        if not container.streams.video:
            raise DataError(f"{where}: {path}: has no video stream, only {', '.join(s.type for s in container.streams) or 'nothing'}")
        yield container.streams.video[0]


def _stated_size(path: Path) -> int:
    """How many bytes an MP4, MOV, WebM or MKV must have by the lengths of its outermost parts; 0 where it does not say."""
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
    """As Matroska writes lengths: the zeros before the first 1 tell how many bytes follow. All ones: None, unknown."""
    first = file.read(1) or b"\0"
    more = 8 - first[0].bit_length()
    value, most = int.from_bytes(first + file.read(more), "big"), (1 << 7 * (more + 1)) - 1
    return None if value & most == most else value & most


def _check_file(path: Path, where: str, kind: str) -> None:
    if path.is_file():
        return
    if path.is_dir():
        raise DataError(f"{where}: {path}: a folder, where {'an image' if kind == 'image' else 'a video'} belongs")
    if not path.parent.is_dir():
        above = next((p for p in path.absolute().parents if p.is_dir()), Path("/"))
        raise DataError(
            f"{where}: {path}: no such {kind}, nor its folder; {above} has {listing(above)}. Relative names start at data.{kind}_dir"
        )
    names = [p.name for p in path.parent.iterdir()]
    raise DataError(f"{where}: {path}: no such {kind}.{nearest(path.name, names)} Its folder has {listing(path.parent)}")


def _check_size(path: Path, where: str, width: int, height: int, frames: int) -> None:
    if width * height > MOST_IMAGE:
        raise DataError(f"{where}: {path}: {_mega(width * height)} megapixels ({width} x {height}); at most {_mega(MOST_IMAGE)}")
    if width * height * frames > MOST_VIDEO:
        raise DataError(
            f"{where}: {path}: {frames} frames of {width} x {height} are {_mega(width * height * frames)} megapixels; "
            f"at most {_mega(MOST_VIDEO)}"
        )


def _mega(pixels: int) -> str:
    return f"{round(pixels / 1e6, 1):,g}"


def _said(error: Exception) -> str:
    """Without the path and the numbers that av adds."""
    return " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
