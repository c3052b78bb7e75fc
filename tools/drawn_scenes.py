"""Eight little scenes and some things, drawn with Pillow: the pictures of dataset/edit, i2v and v2v. See make_condition_sets.py.

A scene is a function of a `Pen` and of what may differ in it. Heights run from 0 to 1 downwards, and so do widths, in heights: the middle
is at `pen.x(0.5)`, whatever the picture's shape.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image, ImageDraw

COLOURS = {
    "red": "#c8372d", "blue": "#2f6fb7", "green": "#3f8f4f", "yellow": "#edc23b", "orange": "#e5822e", "purple": "#7a4fa3",
    "pink": "#e58aa8", "white": "#f4f1ea", "brown": "#8a5a3a", "black": "#2b2b2f", "turquoise": "#3fb0ac", "grey": "#8d939b",
}  # fmt: skip
SKY, NIGHT, GRASS, SNOW, SEA, SUN, WOOD, LEAF = "#bfe0f2", "#1d2748", "#86b65b", "#eef3f7", "#3d7ea6", "#f7d23e", "#a9744a", "#3c7a43"
Scene = Callable[..., None]


def colour(name: str) -> str:
    """Of `COLOURS`, or the text itself."""
    return COLOURS.get(name, name)


class Pen:
    """Draws at four times the size, so that edges come out smooth; by whole numbers alone, so that they do everywhere."""

    def __init__(self, width: int, height: int):
        self.image = Image.new("RGB", (4 * width, 4 * height))
        self.draw, self.unit, self.wide = ImageDraw.Draw(self.image), 4 * height, width / height

    def x(self, share: float) -> float:
        """A place by its share of the width."""
        return share * self.wide

    def box(self, x: float, y: float, x1: float, y1: float, fill: str, radius: float = 0) -> None:
        self.draw.rounded_rectangle([round(v * self.unit) for v in (x, y, x1, y1)], round(radius * self.unit), colour(fill))

    def disc(self, x: float, y: float, r: float, fill: str, tall: float | None = None) -> None:
        h = r if tall is None else tall
        self.draw.ellipse([round(v * self.unit) for v in (x - r, y - h, x + r, y + h)], colour(fill))

    def shape(self, fill: str, *points: tuple[float, float]) -> None:
        self.draw.polygon([(round(x * self.unit), round(y * self.unit)) for x, y in points], colour(fill))

    def line(self, fill: str, width: float, *points: tuple[float, float]) -> None:
        scaled = [(round(x * self.unit), round(y * self.unit)) for x, y in points]
        self.draw.line(scaled, colour(fill), round(width * self.unit), joint="curve")

    def ring(self, x: float, y: float, r: float, width: float, fill: str) -> None:
        self.draw.ellipse(
            [round(v * self.unit) for v in (x - r, y - r, x + r, y + r)], outline=colour(fill), width=round(width * self.unit)
        )

    def ground(self, above: str, below: str, horizon: float) -> None:
        self.box(0, 0, self.wide, 1, above)
        self.box(0, horizon, self.wide, 1, below)

    def picture(self) -> Image.Image:
        return self.image.reduce(4)


def drawn(scene: Scene, size: tuple[int, int], **what: Any) -> Image.Image:
    """A scene as a picture of (width, height)."""
    pen = Pen(*size)
    scene(pen, **what)
    return pen.picture()


def _tree(pen: Pen, x: float, y: float, size: float, leaf: str = LEAF) -> None:
    pen.box(x - 0.02, y - 0.1, x + 0.02, y, WOOD)
    pen.disc(x, y - 0.1 - size, size, leaf, 1.15 * size)


def _moon_or_sun(pen: Pen, night: bool, x: float, y: float) -> None:
    pen.disc(x, y, 0.075, "#f2efdc" if night else SUN)
    if night:
        pen.disc(x + 0.035, y - 0.015, 0.065, NIGHT)


def house(pen: Pen, wall: str, roof: str, door: str, night: bool = False) -> None:
    """A house with a tree on its left."""
    pen.ground(NIGHT if night else SKY, "#4d6b45" if night else GRASS, 0.74)
    _moon_or_sun(pen, night, pen.x(0.86), 0.15)
    x = pen.x(0.56)
    _tree(pen, pen.x(0.17), 0.8, 0.13, "#27512f" if night else LEAF)
    pen.box(x - 0.28, 0.42, x + 0.28, 0.82, wall)
    pen.shape(roof, (x - 0.35, 0.43), (x, 0.14), (x + 0.35, 0.43))
    pen.box(x - 0.06, 0.58, x + 0.07, 0.82, door)
    pen.disc(x + 0.045, 0.7, 0.012, "yellow")
    for left in (x - 0.22, x + 0.12):
        pen.box(left, 0.51, left + 0.11, 0.63, "#f7e08a" if night else "#dcebf3")
        pen.line("white", 0.012, (left + 0.055, 0.51), (left + 0.055, 0.63))


def mug(pen: Pen, mug: str, table: str = WOOD, wall: str = "#e9dcc6", x: float = 0.5, steam: bool = True) -> None:
    """A steaming mug on a table."""
    pen.ground(wall, table, 0.7)
    x = pen.x(x)
    pen.disc(x, 0.845, 0.24, "#7d5636", 0.035)
    pen.ring(x + 0.22, 0.62, 0.11, 0.04, mug)
    pen.box(x - 0.2, 0.42, x + 0.2, 0.84, mug, 0.05)
    pen.disc(x, 0.43, 0.2, "#3b2417", 0.045)
    for k in (-1, 0, 1) if steam else ():
        points = [(x + 0.1 * k + 0.02 * math.sin(9 * t / 4), 0.36 - 0.03 * t) for t in range(8)]
        pen.line("#fbf7ef", 0.018, *points)


def boat(pen: Pen, hull: str, sail: str, x: float = 0.5, night: bool = False) -> None:
    """A sailing boat on calm water."""
    pen.ground(NIGHT if night else SKY, "#1f4260" if night else SEA, 0.62)
    _moon_or_sun(pen, night, pen.x(0.16), 0.17)
    for k in range(6):
        left = pen.x((0.13 + 0.29 * k) % 1)
        pen.line("#6fa6c6", 0.012, (left, 0.7 + 0.045 * k), (left + 0.12, 0.7 + 0.045 * k))
    x = pen.x(x)
    pen.line("brown", 0.02, (x, 0.2), (x, 0.64))
    pen.shape(sail, (x + 0.02, 0.2), (x + 0.02, 0.58), (x + 0.25, 0.58))
    pen.shape(sail, (x - 0.02, 0.26), (x - 0.02, 0.58), (x - 0.17, 0.58))
    pen.shape(hull, (x - 0.26, 0.63), (x + 0.3, 0.63), (x + 0.2, 0.75), (x - 0.18, 0.75))


def snowman(pen: Pen, hat: str, scarf: str) -> None:
    """A snowman with a hat and a scarf before two firs."""
    pen.ground("#a9c9de", SNOW, 0.72)
    for place in (0.14, 0.88):
        for k in range(3):
            y = 0.5 + 0.1 * k
            pen.shape(LEAF, (pen.x(place) - 0.07 - 0.03 * k, y), (pen.x(place), y - 0.17), (pen.x(place) + 0.07 + 0.03 * k, y))
    x = pen.x(0.5)
    pen.disc(x, 0.74, 0.21, "#dbe6ee")
    pen.disc(x, 0.735, 0.2, "white")
    pen.disc(x, 0.4, 0.14, "white")
    pen.box(x - 0.13, 0.5, x + 0.13, 0.56, scarf, 0.02)
    pen.box(x + 0.05, 0.53, x + 0.11, 0.7, scarf, 0.02)
    pen.box(x - 0.17, 0.265, x + 0.17, 0.3, hat, 0.01)
    pen.box(x - 0.1, 0.1, x + 0.1, 0.28, hat, 0.01)
    for dx in (-0.05, 0.05):
        pen.disc(x + dx, 0.37, 0.016, "black")
    pen.shape("orange", (x, 0.395), (x, 0.43), (x + 0.14, 0.42))
    for y in (0.65, 0.74, 0.83):
        pen.disc(x, y, 0.017, "black")


def flowers(pen: Pen, vase: str, petals: str = "red", wall: str = "#dfe7e0", blooming: bool = True) -> None:
    """A vase with three flowers on a table, or without."""
    pen.ground(wall, WOOD, 0.78)
    x = pen.x(0.5)
    for dx, y in ((-0.17, 0.28), (0.17, 0.3), (0, 0.19)) if blooming else ():
        pen.line(LEAF, 0.016, (x, 0.62), (x + dx, y))
        for k in range(6):
            pen.disc(x + dx + 0.062 * math.cos(k * math.pi / 3), y + 0.062 * math.sin(k * math.pi / 3), 0.045, petals)
        pen.disc(x + dx, y, 0.04, "yellow" if petals != "yellow" else "brown")
    pen.disc(x, 0.9, 0.17, "#7d5636", 0.025)
    pen.disc(x, 0.74, 0.15, vase, 0.17)
    pen.box(x - 0.07, 0.53, x + 0.07, 0.65, vase)
    pen.disc(x, 0.53, 0.085, vase, 0.02)
    pen.disc(x, 0.53, 0.065, "#3a3f3c", 0.012)


def car(pen: Pen, body: str, x: float = 0.5, leaf: str = LEAF) -> None:
    """A car on a road with three trees behind."""
    pen.ground(SKY, GRASS, 0.55)
    for place in (0.12, 0.5, 0.88):
        _tree(pen, pen.x(place), 0.6, 0.13, leaf)
    pen.box(0, 0.68, pen.wide, 0.94, "#6b6e75")
    for k in range(6):
        pen.box(pen.x(0.02 + 0.18 * k), 0.8, pen.x(0.1 + 0.18 * k), 0.82, "white")
    x = pen.x(x)
    pen.box(x - 0.2, 0.48, x + 0.15, 0.66, body, 0.06)
    pen.box(x - 0.34, 0.57, x + 0.34, 0.74, body, 0.05)
    for left in (x - 0.16, x + 0.0):
        pen.box(left, 0.51, left + 0.12, 0.59, "#d5e6ee", 0.015)
    for dx in (-0.2, 0.2):
        pen.disc(x + dx, 0.74, 0.075, "black")
        pen.disc(x + dx, 0.74, 0.035, "grey")
    pen.disc(x + 0.32, 0.63, 0.022, SUN)


def balloon(pen: Pen, stripes: Sequence[str], x: float = 0.5, y: float = 0.36) -> None:
    """A hot-air balloon with vertical stripes over hills."""
    pen.box(0, 0, pen.wide, 1, SKY)
    for place, r, fill in ((0.18, 0.5, "#7fae6a"), (0.82, 0.55, "#6b9f5d"), (0.5, 0.42, "#8fbb72")):
        pen.disc(pen.x(place), 1.12, r, fill, 0.36)
    x, r = pen.x(x), 0.22
    for k in range(5):  # ellipses one within the other: the seams of the envelope
        pen.disc(x, y, r * (1 - 0.2 * k), stripes[k % len(stripes)], 0.24)
    pen.shape(stripes[0], (x - 0.15, y + 0.17), (x + 0.15, y + 0.17), (x + 0.05, y + 0.29), (x - 0.05, y + 0.29))
    for dx in (-0.045, 0.045):
        pen.line("brown", 0.008, (x + dx, y + 0.28), (x + dx, y + 0.35))
    pen.box(x - 0.055, y + 0.34, x + 0.055, y + 0.42, "brown", 0.012)


def fish(pen: Pen, body: str, x: float = 0.5, wall: str = "#efe3d3") -> None:
    """A fish, looking right, in a round bowl on a table."""
    pen.ground(wall, WOOD, 0.8)
    middle = pen.x(0.5)
    pen.disc(middle, 0.9, 0.26, "#7d5636", 0.03)
    pen.disc(middle, 0.56, 0.37, "#e3f1f4", 0.34)
    pen.disc(middle, 0.58, 0.345, "#9fd0df", 0.3)
    pen.box(middle - 0.34, 0.2, middle + 0.34, 0.36, wall)
    pen.disc(middle, 0.36, 0.285, "#c4e3ea", 0.035)
    for k in range(4):
        pen.disc(middle - 0.2 + 0.03 * (k % 2), 0.8 - 0.07 * k, 0.035, LEAF, 0.05)
    x = middle + 0.36 * (x - 0.5)
    pen.shape(body, (x - 0.09, 0.6), (x - 0.19, 0.53), (x - 0.19, 0.67))
    pen.disc(x, 0.6, 0.12, body, 0.075)
    pen.disc(x + 0.07, 0.585, 0.018, "white")
    pen.disc(x + 0.074, 0.585, 0.009, "black")


def swatches(pen: Pen, colours: Sequence[str]) -> None:
    """Paper strips side by side."""
    pen.box(0, 0, pen.wide, 1, "#e6e2da")
    wide = pen.wide / len(colours)
    for k, name in enumerate(colours):
        pen.box(k * wide + 0.05 * wide, 0.1, (k + 0.95) * wide, 0.9, name)


def dots(pen: Pen, ground: str, dot: str) -> None:
    """A cloth with dots."""
    pen.box(0, 0, pen.wide, 1, ground)
    for row in range(6):
        for k in range(round(6 * pen.wide) + 1):
            pen.disc((k + row % 2 / 2) / 6, (row + 0.5) / 6, 0.045, dot)


def top_hat(pen: Pen, hat: str, band: str) -> None:
    """A hat with a band on white."""
    pen.box(0, 0, pen.wide, 1, "#f7f6f2")
    x = pen.x(0.5)
    pen.disc(x, 0.74, 0.38, hat, 0.07)
    pen.box(x - 0.22, 0.24, x + 0.22, 0.74, hat, 0.02)
    pen.box(x - 0.22, 0.6, x + 0.22, 0.69, band)
