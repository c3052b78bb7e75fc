"""Reads condition images and videos from disk. Needs no torch; av is imported where it is used, since the import takes half a second.

Errors are `DataError`s that name the line of the data set, the file, what is wrong with it and what would be right.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from PIL import Image, ImageOps, UnidentifiedImageError

from flow_factory.data.lengths import stated_size
from flow_factory.data.media_checks import (
    MOST_IMAGE,
    Extent,
    Kind,
    check_file,
    check_size,
    first_bytes,
    image_format,
    megapixels,
    open_container,
    reason_of,
)
from flow_factory.data.mp4 import save_video as save_video
from flow_factory.data.pixel_modes import grey, rgb
from flow_factory.data.reader import DataError
from flow_factory.data.sounds import check_sound, open_sound
from flow_factory.types import Clip

if TYPE_CHECKING:
    import av

DECODER_ERRORS = (OSError, SyntaxError, ValueError, TypeError, KeyError, EOFError, struct.error, zlib.error)
"""The errors of Pillow's decoders on damaged files."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP")
"""The formats that Pillow may open. Some of its others run a program (EPS) or a library of the system (WMF)."""
CONTAINERS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "gif")
"""The formats that FFmpeg may open, by FFmpeg's names. None of them opens other files, as a playlist does."""


def check_media(path: str | Path, where: str, kind: Kind) -> Extent:
    """Reads the header: the file must exist, be of this kind, and not be too large (`MOST_IMAGE`, `MOST_VIDEO`, `MOST_SOUND`).

    An image or a mask must have one frame and 1, 8 or 16 bits a channel, since float and 32-bit values have no common range.

    Args:
        where: `file:line` of the data set, for the message.

    Returns:
        (width, height, frames) as stored, before the rotation is applied. The number of frames is an estimate if the header lacks it.
        Of a sound, see `check_sound`.

    Raises:
        DataError: a condition above does not hold.
    """
    if kind == "audio":
        return check_sound(path, where)
    if kind != "video":
        with _image(Path(path), where, kind) as image:
            return (*image.size, 1)
    with _video(Path(path), where) as stream:
        rate, seconds = stream.average_rate, stream.container.duration
        frames = stream.frames or (round(float(rate) * seconds / 1e6) if rate and seconds else 1)  # the duration is in microseconds
        check_size(Path(path), where, stream.width, stream.height, frames)
        return stream.width, stream.height, frames


def check_whole(path: str | Path, where: str, kind: Kind) -> Extent:
    """Decodes the whole file and discards the result.

    Returns:
        (width, height, frames) as displayed; of a sound, (channels, Hz, samples).

    Raises:
        DataError: see `open_image`, `open_mask`, `open_video`, `open_sound`.
    """
    if kind == "audio":
        sound = open_sound(path, where)
        return len(sound.samples), sound.sample_rate, sound.samples.shape[1]
    if kind != "video":
        return (*(open_mask if kind == "mask" else open_image)(path, where).size, 1)
    size, count = (0, 0), 0
    for count, frame in enumerate(_frames(Path(path), where), start=1):  # noqa: B007 (the last one counts)
        size = frame.size
    return (*size, count)


def open_image(path: str | Path, where: str) -> Image.Image:
    """The image in 8-bit RGB, rotated by its EXIF orientation.

    Transparency is composited on white. 16-bit grey is scaled to 8 bits and rounded. Colour profiles are not applied.

    Raises:
        DataError: see `check_media`; or the file is damaged or truncated.
    """
    return _decoded(path, where, "image", rgb)


def open_mask(path: str | Path, where: str) -> Image.Image:
    """The mask in 8-bit grey (mode L), rotated by its EXIF orientation: white is drawn anew, black is kept. Colours become their luma.

    Raises:
        DataError: see `open_image`; or the mask has transparent parts, or no value above 1, as one that is written with 0 and 1.
    """
    mask = _decoded(path, where, "mask", grey)
    if mask is None:
        raise DataError(f"{where}: {path}: a mask with transparent parts; save it as grey, white where the picture is drawn anew")
    if mask.getextrema()[1] == 1:
        raise DataError(f"{where}: {path}: a mask with the values 0 and 1; white, where the picture is drawn anew, is 255")
    return mask


Converted = TypeVar("Converted")


def _decoded(path: str | Path, where: str, kind: Kind, convert: Callable[[Image.Image], Converted]) -> Converted:
    """The whole image, upright and converted."""
    with _image(Path(path), where, kind) as image:
        try:
            return convert(ImageOps.exif_transpose(image))
        except DECODER_ERRORS as error:
            raise DataError(f"{where}: {path}: damaged or truncated ({reason_of(error)})") from error


def first_frame(path: str | Path, where: str) -> Image.Image:
    """The first frame of a video.

    Raises:
        DataError: see `open_video`.
    """
    with closing(_frames(Path(path), where)) as frames:
        return next(frames)


def open_video(path: str | Path, where: str) -> Clip:
    """All frames of the file's first video stream, rotated upright, with its mean frame rate; audio is ignored.

    Variable frame rates and non-square pixels are ignored. A GIF, or a file that does not state its length, may have lost frames at its
    end without notice.

    Raises:
        DataError: see `check_media`; or the file is damaged or truncated, or has no frame rate.
    """
    with _video(Path(path), where) as stream:
        rate = _rate(stream)
    return Clip(list(_frames(Path(path), where)), float(rate))


def _frames(path: Path, where: str) -> Generator[Image.Image, None, None]:
    """Yields the frames one by one; see `open_video`."""
    import av

    count = 0
    with _video(path, where) as stream:
        if not _rate(stream):
            raise DataError(f"{where}: {path}: has no frame rate; write it anew, e.g. as MP4")
        try:
            for packet in stream.container.demux(stream):
                decoded = packet.decode()
                if packet.is_corrupt or any(frame.is_corrupt for frame in decoded):
                    raise av.InvalidDataError(0, "a damaged packet")
                for frame in decoded:
                    count += 1
                    check_size(path, where, frame.width, frame.height, count)
                    yield _upright(frame)
        except av.FFmpegError as error:
            decoded_part = f"{count} of {stream.frames or '?'} frames"
            raise DataError(f"{where}: {path}: damaged or truncated after {decoded_part} ({reason_of(error)})") from error
    if not count:
        raise DataError(f"{where}: {path}: no frame in it can be decoded; it is damaged or truncated")


def _rate(stream: Any) -> Any:
    return stream.average_rate or stream.guessed_rate


def _upright(frame: av.VideoFrame) -> Image.Image:
    """The frame, rotated. `rotation` is counter-clockwise in degrees, as in PIL."""
    turns = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}
    image, angle = frame.to_image(), round(frame.rotation) % 360
    return image.transpose(turns[angle]) if angle in turns else image


@contextmanager
def _image(path: Path, where: str, kind: Kind) -> Iterator[Image.Image]:
    """Opens the image and reads its header only."""
    check_file(path, where, kind)
    try:
        image = Image.open(path, formats=FORMATS)
        animated = getattr(image, "is_animated", False) and image.format != "MPO"  # MPO: a phone's photo with a second view
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{where}: {path}: far more than the {megapixels(MOST_IMAGE)} megapixels that an image may have ({error})"
        ) from error
    except DECODER_ERRORS as error:
        raise DataError(f"{where}: {path}: {_unread(path, error)}") from error
    with image:
        check_size(path, where, *image.size, 1)
        if animated:
            raise DataError(f"{where}: {path}: has several frames ({image.format}); an image must have one")
        if image.mode in ("I", "F"):
            raise DataError(f"{where}: {path}: pixels of mode {image.mode} have no common range; save it with 8 or 16 bits a channel")
        yield image


def _unread(path: Path, error: Exception) -> str:
    """Why a file cannot be read as an image."""
    known = image_format(path)
    if known:
        return f"a {known} that is damaged or truncated" + f" ({reason_of(error)})" * (not isinstance(error, UnidentifiedImageError))
    if not isinstance(error, UnidentifiedImageError):
        return f"cannot be read ({reason_of(error)})"
    head = first_bytes(path)
    return f"not a readable image, such as PNG, JPEG or WebP; it begins with {head!r}" if head else "an empty file"


@contextmanager
def _video(path: Path, where: str) -> Iterator[Any]:
    """Opens the first video stream; no packet is read."""
    check_file(path, where, "video")
    if (size := path.stat().st_size) < (stated := stated_size(path)):  # av would silently end the video there
        raise DataError(f"{where}: {path}: truncated: it has {size:,} bytes of at least {stated:,}")
    try:
        container = open_container(path, where, CONTAINERS, "a video", "MP4, MOV, WebM, MKV, AVI and GIF")
    except DataError as error:
        if image_format(path):
            raise DataError(f"{where}: {path}: an image, not a video; images belong in the column 'image' or 'images'") from error
        raise
    with closing(container):
        if not container.streams.video:
            raise DataError(f"{where}: {path}: has no video stream; its streams: {', '.join(s.type for s in container.streams) or 'none'}")
        yield container.streams.video[0]
