"""Clips of noise, and what a player gets from a video file."""

from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from PIL import Image

from flow_factory.types import Clip


def clip(frames: int, size: tuple[int, int] = (16, 16), fps: float = 8.0, seed: int = 0, sound: bool = False) -> Clip:
    """Coarse noise, which survives an encoder, other in every frame; the sound is a tone as long as the frames."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (frames, max(1, size[1] // 8), max(1, size[0] // 8), 3), np.uint8)
    pictures = [Image.fromarray(b).resize(size, Image.Resampling.NEAREST) for b in blocks]
    if not sound:
        return Clip(pictures, fps)
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(round(16000 * frames / fps)) / 16000)
    return Clip(pictures, fps, np.stack([tone, -tone]).astype(np.float32), 16000)


@dataclass
class Played:
    frames: list[np.ndarray]
    """(H, W, 3) uint8 each."""
    fps: float
    sound: np.ndarray | None
    """(channels, samples)."""
    sample_rate: int | None


def played(file: Path) -> Played:
    """Everything in the file, decoded."""
    with av.open(str(file)) as container:
        frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
        fps = float(container.streams.video[0].average_rate or 0)
        audio = container.streams.audio
        if not audio:
            return Played(frames, fps, None, None)
        container.seek(0)
        sound = np.concatenate([f.to_ndarray() for f in container.decode(audio=0)], axis=1)
        return Played(frames, fps, sound, audio[0].rate)
