"""Writes a clip as MP4. av is imported where it is used, since the import takes half a second."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from flow_factory.types import Clip

if TYPE_CHECKING:
    import av


@dataclass(frozen=True)
class EncodedClip(Clip):
    """A clip with its encoded MP4."""

    file: bytes = b""
    """The content that `save_video` writes."""


def video_bytes(clip: Clip) -> bytes:
    """The clip as MP4. It goes through a temporary file, since `save_video` needs a file that it can seek in.

    Raises:
        ValueError: see `save_video`.
        OSError, av.FFmpegError: the clip cannot be written or encoded.
    """
    if isinstance(clip, EncodedClip):
        return clip.file
    with TemporaryDirectory() as folder:
        file = Path(folder, "clip.mp4")
        save_video(clip, file)
        return file.read_bytes()


def save_video(clip: Clip, path: str | Path) -> None:
    """Writes an MP4: H.264 (yuv420p, BT.709, crf 17), and AAC if the clip has audio.

    yuv420p needs even sides: an odd width or height grows by one pixel, which repeats the last column or row.
    One machine always writes the same bytes, so the samples and reports of two runs can be compared. The encoder has one thread, since the
    number of threads changes the bytes, and no macroblock tree, since x264's (of build 165) depends on memory that it never wrote.

    Raises:
        ValueError: no frames, frames of different sizes, a frame rate that is not positive, or audio that is not (1 or 2, samples).
    """
    import av

    if isinstance(clip, EncodedClip):
        Path(path).write_bytes(clip.file)
        return
    sizes = {frame.size for frame in clip.frames}
    if len(sizes) != 1 or not clip.fps > 0:
        raise ValueError(f"{path}: a video needs frames of one size and a positive rate, not sizes {sorted(sizes)} at {clip.fps} fps")
    width, height = (side + side % 2 for side in sizes.pop())
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        settings = {"crf": "17", "threads": "1", "mbtree": "0"}
        video = container.add_stream("libx264", rate=Fraction(clip.fps).limit_denominator(1001), options=settings)
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        context = video.codec_context
        context.colorspace = context.color_primaries = context.color_trc = context.color_range = 1  # BT.709, limited range
        sound = None if clip.audio is None else _sound(clip, path)
        audio = None if sound is None else container.add_stream("aac", rate=sound.sample_rate, layout=sound.layout.name)
        for frame in clip.frames:
            container.mux(video.encode(_yuv(frame, width, height)))
        container.mux(video.encode())
        if audio is not None:
            container.mux([*audio.encode(sound), *audio.encode()])


def _sound(clip: Clip, path: str | Path) -> av.AudioFrame:
    import av

    samples = np.ascontiguousarray(clip.audio, dtype=np.float32)
    if samples.ndim != 2 or len(samples) not in (1, 2) or not clip.sample_rate:
        raise ValueError(
            f"{path}: audio must be (1 or 2 channels, samples) with a sample rate, not {samples.shape} at {clip.sample_rate} Hz"
        )
    frame = av.AudioFrame.from_ndarray(samples.clip(-1, 1), format="fltp", layout=("mono", "stereo")[len(samples) - 1])
    frame.sample_rate = clip.sample_rate
    return frame


def _yuv(frame: Image.Image, width: int, height: int) -> av.VideoFrame:
    import av

    pixels = np.asarray(frame.convert("RGB"))
    padded = np.pad(pixels, ((0, height - pixels.shape[0]), (0, width - pixels.shape[1]), (0, 0)), mode="edge")
    return av.VideoFrame.from_ndarray(padded).reformat(
        format="yuv420p", dst_colorspace="ITU709", src_color_range="JPEG", dst_color_range="MPEG"
    )
