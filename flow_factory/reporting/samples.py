"""Samples on disk, to compare later ones with, and videos to play."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from flow_factory.data.mp4 import save_video
from flow_factory.reporting.pictures import excerpt
from flow_factory.types import Clip, Sample


def keep_samples(samples: Sequence[Sample], folder: Path) -> None:
    """Pictures, and of clips the frames that are shown, as PNG, with captions and scores: also a resumed run compares with them."""
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in ("samples.json", "*.png"):  # in this order: a killed process must not leave a listing without its pictures
        _clear(folder, pattern)
    listing = [{"prompt": s.prompt, "rewards": s.rewards, "fps": _keep(s.media, folder, f"{k:03d}")} for k, s in enumerate(samples)]
    (folder / "samples.json").write_text(json.dumps(listing, indent=1))


def kept_samples(folder: Path) -> list[Sample]:
    """Reads what `keep_samples` wrote, clips as their `excerpt`; empty if there is nothing."""
    file = folder / "samples.json"
    listing = json.loads(file.read_text()) if file.is_file() else []
    return [Sample(s["prompt"], _kept(folder, f"{k:03d}", s.get("fps")), s["rewards"]) for k, s in enumerate(listing)]


def save_videos(samples: Sequence[Sample], folder: Path, label: str) -> None:
    """Writes each clip as an MP4, instead of those of an earlier call with this label.

    A file's name is the sample's number, the words of its prompt, and the label: those of one sample stand side by side.
    """
    _clear(folder, f"*_{label}.mp4")
    for k, sample in enumerate(samples):
        if isinstance(sample.media, Clip):
            folder.mkdir(parents=True, exist_ok=True)
            save_video(sample.media, folder / f"{k:03d}_{words(sample.prompt)}_{label}.mp4")


def _keep(media: Any, folder: Path, name: str) -> float | None:
    """Writes the picture or the frames; the rate of a clip's."""
    if not isinstance(media, Clip):
        media.save(folder / f"{name}.png")
        return None
    short = excerpt(media)
    for k, frame in enumerate(short.frames):
        frame.save(folder / f"{name}_{k}.png")
    return short.fps


def _kept(folder: Path, name: str, fps: float | None) -> Any:
    if fps is None:
        return Image.open(folder / f"{name}.png").convert("RGB")
    return Clip([Image.open(file).convert("RGB") for file in sorted(folder.glob(f"{name}_*.png"))], fps)


def words(prompt: str) -> str:
    """The prompt's first forty characters, of which letters and digits are left: at most 160 bytes of a file's name."""
    return re.sub(r"\W+", "-", prompt)[:40].strip("-")


def _clear(folder: Path, pattern: str) -> None:
    for file in folder.glob(pattern):
        file.unlink()
