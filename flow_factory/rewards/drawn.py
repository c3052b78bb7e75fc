"""Pictures whose order is known: a red circle with a word in it, worse and worse, and rows that have what rewards ask of a row."""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from flow_factory.rewards.shapes_detector import BACKGROUND, PALETTE
from flow_factory.types import Clip, Row

SIDE = 256
PROMPT = 'a red circle with the word "STOP"'
COLUMNS = {
    "objects": [{"color": "red", "shape": "circle", "count": 1}],
    "relation": None,
    "include": [{"class": "stop sign", "count": 1, "color": "red"}],
    "vqa_list": [["How many red circles are in the image?", "one"], ["Is there a circle?", "Yes"]],
}
"""What the rewards that come along ask of a row; others are left to the user's own rows."""
ROW = Row(0, PROMPT, columns=COLUMNS, source="a drawn picture")


def circle() -> Image.Image:
    """What the prompt asks for."""
    image = Image.new("RGB", (SIDE, SIDE), BACKGROUND)
    draw = ImageDraw.Draw(image)
    draw.ellipse((48, 48, 208, 208), PALETTE["red"])
    draw.text((SIDE // 2, SIDE // 2), "STOP", "white", font_size=44, anchor="mm")
    return image


def _noisy(image: Image.Image, share: float) -> Image.Image:
    """With noise in place of so much of it."""
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3))
    return Image.fromarray(np.rint((1 - share) * np.asarray(image) + share * noise).astype(np.uint8))


def _crushed(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.resize((48, 48)).save(buffer, "JPEG", quality=5)
    return Image.open(buffer).convert("RGB").resize(image.size)


WORSE: dict[str, Callable[[Image.Image], Image.Image]] = {
    "as asked": lambda image: image,
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(6)),
    "crushed": _crushed,
    "half noise": lambda image: _noisy(image, 0.5),
    "noise": lambda image: _noisy(image, 1.0),
}
"""From best to worst by what people see."""


def drawn(video: bool) -> dict[str, Image.Image | Clip]:
    """By name, best first; as clips of four equal frames where the reward scores videos alone."""
    pictures = {name: worse(circle()) for name, worse in WORSE.items()}
    if not video:
        return dict(pictures)
    rate = 16_000
    tone = np.sin(np.arange(rate) * 0.05, dtype=np.float32)[None]
    return {name: Clip([image.copy() for _ in range(4)], 4.0, tone, rate) for name, image in pictures.items()}
