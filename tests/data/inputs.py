"""Data sets with files for a pipeline's further arguments, and runs of pipelines that take them."""

import json
import wave
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flow_factory.data.columns import DataError
from flow_factory.data.media import save_video
from flow_factory.types import Clip, Row
from tests.tiny.run import checkpoint, write_run
from tests.tiny.tables import picture

HERE = "train.jsonl:7"
COLUMNS = {"mask_image": "area", "control_image": "edges", "pose_video": "pose", "src_audio": "tune"}
STRIPES = Image.fromarray(np.repeat(np.uint8([[0, 255, 255, 0]]), 4, axis=0))


def tone(path: Path, rate: int = 8000, channels: int = 2, seconds: float = 0.5) -> np.ndarray:
    """Writes a WAV of 16 bits; its samples (channels, n) as floats."""
    samples = np.random.default_rng(0).integers(-(1 << 14), 1 << 14, (channels, round(rate * seconds))).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.T.tobytes())
    return samples / np.float32(1 << 15)


def media(folder: Path) -> Path:
    """A data set's folder with a file of each kind."""
    for kind in ("images", "videos", "audios"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    STRIPES.save(folder / "images" / "mask.png")
    (folder / "images" / "green.png").write_bytes(picture("green", (4, 4)))
    (folder / "images" / "red.png").write_bytes(picture("red", (4, 4)))
    save_video(Clip([Image.new("RGB", (16, 16), color) for color in ("red", "green", "blue")], 8), folder / "videos" / "walk.mp4")
    tone(folder / "audios" / "tune.wav")
    return folder


def refused(call: Callable[..., Any], *args: Any) -> str:
    with pytest.raises(DataError) as error:
        call(*args)
    assert "\n" not in str(error.value)
    return str(error.value)


def with_pipeline(folder: Path, name: str, **columns: str) -> Path:
    """The YAML of a tiny run of another pipeline with the parts of FLUX.1."""
    file = write_run(folder)
    (folder / "model").mkdir(exist_ok=True)
    for part in checkpoint().iterdir():
        if part.name != "model_index.json" and not (folder / "model" / part.name).exists():
            (folder / "model" / part.name).symlink_to(part)
    index = json.loads((checkpoint() / "model_index.json").read_text()) | {"_class_name": name}
    (folder / "model" / "model_index.json").write_text(json.dumps(index))
    text = file.read_text().replace("model_type: flux1", "model_type: diffusers").replace(str(checkpoint()), f"{folder}/model")
    text = text.replace("num_inference_steps: 3", "num_inference_steps: 5")  # strength leaves some of them
    file.write_text(text.replace("data:\n", f"data:\n  columns: {json.dumps(columns)}\n", 1) if columns else text)
    return file


def row_of(**given: Mapping[str, tuple[str, ...]] | tuple[str, ...]) -> Row:
    return Row(0, "a", source=HERE, **given)  # type: ignore[arg-type]
