"""Reads sounds from disk. Needs no torch; av is imported where it is used, since the import takes half a second."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from flow_factory.data.media_checks import Extent, check_file, open_container, reason_of
from flow_factory.data.reader import DataError
from flow_factory.types import Sound

CONTAINERS = ("wav", "flac", "mp3", "ogg", "aac", "aiff", "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
"""The formats that FFmpeg may open, by FFmpeg's names. None of them opens other files."""
MOST_SOUND = 200_000_000
"""The most values of a sound, of all channels together: half an hour of 48 kHz stereo is 173 million."""


def check_sound(path: str | Path, where: str) -> Extent:
    """Reads the header: the file must exist, have a sound, and not be too long (`MOST_SOUND`).

    Returns:
        (channels, Hz, samples of a channel); the number of samples is an estimate.

    Raises:
        DataError: a condition above does not hold.
    """
    with _sound(Path(path), where) as stream:
        seconds = (stream.container.duration or 0) / 1e6
        extent = stream.codec_context.channels, stream.rate, round(seconds * stream.rate)
        _check_length(path, where, extent[0] * extent[2])
        return extent


def open_sound(path: str | Path, where: str) -> Sound:
    """The file's first sound, with its own channels and rate.

    Raises:
        DataError: see `check_sound`; or the file is damaged or truncated.
    """
    import av

    parts, values = list[np.ndarray](), 0
    with _sound(Path(path), where) as stream:
        rate = stream.rate
        resampler = av.AudioResampler(format="fltp", layout=stream.codec_context.layout, rate=rate)
        try:
            for packet in stream.container.demux(stream):
                for frame in packet.decode():
                    parts += [part.to_ndarray() for part in resampler.resample(frame)]
                    values += parts[-1].size if parts else 0
                    _check_length(path, where, values)
            parts += [part.to_ndarray() for part in resampler.resample(None)]
        except (av.FFmpegError, ValueError) as error:
            raise DataError(f"{where}: {path}: damaged or truncated ({reason_of(error)})") from error
    if not parts or not sum(part.shape[1] for part in parts):
        raise DataError(f"{where}: {path}: no sound in it can be decoded; it is damaged or truncated")
    return Sound(np.concatenate(parts, axis=1).astype(np.float32), rate)


def _check_length(path: str | Path, where: str, values: int) -> None:
    if values > MOST_SOUND:
        raise DataError(f"{where}: {path}: {values:,} values of sound; at most {MOST_SOUND:,} (half an hour of 48 kHz stereo); cut it")


@contextmanager
def _sound(path: Path, where: str) -> Iterator[Any]:
    """Opens the first sound; no packet is read."""
    check_file(path, where, "audio")
    container = open_container(path, where, CONTAINERS, "a sound", "WAV, FLAC, MP3, Ogg, AAC, AIFF and videos with sound")
    with closing(container):
        if not container.streams.audio:
            raise DataError(f"{where}: {path}: has no sound; its streams: {', '.join(s.type for s in container.streams) or 'none'}")
        yield container.streams.audio[0]
