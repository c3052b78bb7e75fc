"""Media files of the tests, and how a bad one is refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flow_factory.data.reader import DataError

HERE = "train.jsonl:7"


def picture(width: int = 5, height: int = 3) -> Image.Image:
    """No two pixels alike, and no symmetry."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([40 * x % 256, 70 * y % 256, (x + y) * 20 % 256], axis=-1).astype(np.uint8))


def frames(n: int, width: int, height: int) -> list[Image.Image]:
    """A light field that moves over a dark one, in colours that yuv420p can keep."""
    out = []
    for k in range(n):
        frame = Image.new("RGB", (width, height), (40, 80, 120))
        frame.paste((200, 120, 60), (2 * k, 4, 2 * k + width // 3, height - 4))
        out.append(frame)
    return out


def refused(call: Callable, path: Path, *args: str) -> str:
    with pytest.raises(DataError) as error:
        call(path, HERE, *args)
    message = str(error.value)
    assert message.startswith(f"{HERE}: {path}: "), "the line of the data set and the file come first"
    return message.removeprefix(f"{HERE}: {path}: ")


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path
