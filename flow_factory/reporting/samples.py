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
    listing = [
        {"prompt": s.prompt, "row": s.row, "rewards": s.rewards, "fps": _keep(s.media, folder, f"{k:03d}")} for k, s in enumerate(samples)
    ]
    (folder / "samples.json").write_text(json.dumps(listing, indent=1))


def kept_samples(folder: Path) -> list[Sample]:
    """Reads what `keep_samples` wrote, clips as their `excerpt`; empty if there is nothing."""
    file = folder / "samples.json"
    listing = json.loads(file.read_text()) if file.is_file() else []
    return [Sample(s["prompt"], _kept(folder, f"{k:03d}", s.get("fps")), s["rewards"], row=s.get("row")) for k, s in enumerate(listing)]


def of_same_rows(before: Sequence[Sample], samples: Sequence[Sample]) -> list[Sample | None]:
    """For each sample of `before` that of the same row, if there is one.

    Those that an earlier version kept do not say their row: the same place and the same prompt stand for it.
    """
    by_row = {s.row: s for s in samples if s.row is not None}
    by_place = {(k, s.prompt): s for k, s in enumerate(samples)}
    return [by_row.get(b.row) if b.row is not None else by_place.get((k, b.prompt)) for k, b in enumerate(before)]


def save_videos(samples: Sequence[Sample | None], folder: Path, label: str) -> None:
    """Writes each clip as an MP4, instead of those of an earlier call with this label. A number without a sample is left out.

    A file's name is the sample's number, the words of its prompt, and the label: those of one sample stand side by side.
    """
    _clear(folder, f"*_{label}.mp4")
    for k, sample in enumerate(samples):
        if sample is not None and isinstance(sample.media, Clip):
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
