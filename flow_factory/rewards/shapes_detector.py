"""Finds flat coloured shapes on a plain background, and says how well they match what a caption asked for.

A rule in place of a learned object detector: the quick start's pictures are drawn from a closed world (`PALETTE`, `SHAPES`), so that
GenEval's questions (arXiv 2310.11513: right objects, colours, counts, relative position) have exact answers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

BACKGROUND = (242, 242, 238)
PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (222, 45, 45), "green": (40, 170, 70), "blue": (45, 85, 225), "yellow": (245, 205, 40),
    # Never asked for: they catch mixtures of the colours above, which would otherwise count as one of them.
    "purple": (160, 60, 200), "orange": (240, 125, 30), "cyan": (50, 190, 210), "grey": (110, 110, 110),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle")
RELATIONS = ("left of", "right of", "above", "below")

_COLORS = tuple(PALETTE)
_PLAIN = np.array(BACKGROUND, np.float32)
_RAYS = np.array(list(PALETTE.values()), np.float32) - _PLAIN
_EDGE, _CORE = 100.0, 150.0  # RGB distance from the background: half covered by the palest shape; surely inside one
_IN_PLANE = np.zeros((3, 3, 3), bool)  # 8-connected inside a picture, never between pictures of the batch
_IN_PLANE[1] = True


@dataclass(frozen=True)
class Found:
    """One blob: its colour and shape (None where no rule fits) and its centre in pixels."""

    color: str | None
    shape: str | None
    x: float
    y: float


def _shape(fill: float, aspect: float, sag: float) -> str | None:
    """Shape from the filled part of the bounding box, width/height, and how far the centroid lies below the box's middle."""
    if not 0.7 < aspect < 1.43:
        return None
    if sag > 0.07:
        return "triangle" if 0.42 < fill < 0.75 else None
    if abs(sag) > 0.05:
        return None
    return "square" if fill >= 0.875 else "circle" if fill > 0.62 else None


def nearest_color(pixels: np.ndarray) -> np.ndarray:
    """Index in `PALETTE` (n,) of the colour that RGB pixels (n, 3) show, wholly or in part.

    Distances are those to the segment from the background to the colour, on which the edges of a shape lie: red over two thirds of a
    pixel is closer to pure orange than to pure red.
    """
    off = (pixels.astype(np.float32) - _PLAIN)[:, None]
    cover = ((off * _RAYS).sum(-1) / (_RAYS**2).sum(-1)).clip(0, 1)
    return ((off - cover[..., None] * _RAYS) ** 2).sum(-1).argmin(1)


def detect(images: np.ndarray) -> list[list[Found]]:
    """Objects in each picture of a uint8 batch (n, height, width, 3).

    Blobs smaller than 1.2 % of the picture are specks and are passed over.
    """
    n, height, width, _ = images.shape
    distance = np.sqrt(((images.astype(np.float32) - _PLAIN) ** 2).sum(-1))
    labels, count = ndimage.label(distance > _EDGE, structure=_IN_PLANE)
    found: list[list[Found]] = [[] for _ in range(n)]
    if count == 0:
        return found
    flat = labels.ravel()
    area = np.bincount(flat, minlength=count + 1)
    core = np.flatnonzero((distance > _CORE).ravel() & (flat > 0))
    nearest = nearest_color(images.reshape(-1, 3)[core])
    votes = np.bincount(flat[core] * len(_COLORS) + nearest, minlength=(count + 1) * len(_COLORS)).reshape(-1, len(_COLORS))
    rows = np.bincount(flat, weights=np.broadcast_to(np.arange(height)[None, :, None], labels.shape).ravel(), minlength=count + 1)
    for k, (picture, ys, xs) in enumerate(ndimage.find_objects(labels), 1):
        if area[k] < 0.012 * height * width:
            continue
        h, w = ys.stop - ys.start, xs.stop - xs.start
        y, x = (ys.start + ys.stop - 1) / 2, (xs.start + xs.stop - 1) / 2
        shape = _shape(area[k] / (h * w), w / h, (rows[k] / area[k] - y) / h)
        winner = int(votes[k].argmax())
        color = _COLORS[winner] if votes[k, winner] >= 0.8 * votes[k].sum() > 0 else None
        found[picture.start].append(Found(color, shape, x, y))
    return found


def relation_holds(a: Found, b: Found, relation: str) -> bool:
    """Whether `a` lies on the named side of `b`, along the longer axis of their distance."""
    dx, dy = b.x - a.x, b.y - a.y
    toward = {"left of": dx, "right of": -dx, "above": dy, "below": -dy}[relation]
    return toward > 0 and abs(toward) >= max(abs(dx), abs(dy))


def grade(found: Sequence[Found], objects: Sequence[Mapping[str, Any]], relation: str | None) -> tuple[float, bool]:
    """(score in [0, 1], strict) of one picture for what its caption asks.

    Strict: exactly the asked objects, nothing else, and the relation holds. The score is 1 then; otherwise 0.7 times the share of
    right objects (half for one that has only its colour or only its shape right) in all that are asked or there, the relation
    being half of a picture that asks for one.
    """
    wanted = [(o["color"], o["shape"]) for o in objects for _ in range(o["count"])]
    left = list(found)
    exact = 0
    missing = []
    for want in wanted:
        hit = next((f for f in left if (f.color, f.shape) == want), None)
        if hit is None:
            missing.append(want)
        else:
            left.remove(hit)
            exact += 1
    half = 0
    for color, shape in missing:
        near = next((f for f in left if f.color == color or f.shape == shape), None)
        if near is not None:
            left.remove(near)
            half += 1
    soft = (exact + half / 2) / max(len(wanted), len(found))
    strict = exact == len(wanted) == len(found)
    if relation is not None:
        a, b = (next((f for f in found if (f.color, f.shape) == want), None) for want in wanted[:2])
        holds = a is not None and b is not None and relation_holds(a, b, relation)
        soft, strict = (soft + holds) / 2, strict and holds
    return (1.0, True) if strict else (0.7 * soft, False)
