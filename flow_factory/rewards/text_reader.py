"""Reads text in pictures by PP-OCR (v5 or v6) as transformers has it, with neither Paddle, OpenCV nor torchvision.

What PaddleOCR does around its two networks, in numpy: arXiv 1911.08947 (boxes from a map of probabilities), CTC for the text.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError
from torch import Tensor

THRESHOLD, BOX_THRESHOLD, UNCLIP, SMALLEST = 0.3, 0.6, 1.5, 3
"""Of a pixel and of a box's mean, how far a box grows, and its shorter side in pixels of the map: PP-OCR's own values."""
LONGEST, STEP = 960, 32
"""Pixels of the longer side that the detector sees, and what both sides are a multiple of."""
HEIGHT, WIDTH, WIDEST = 48, 320, 3200
"""Pixels of a line that the recogniser sees: its height, the width that shorter ones are padded to, and the longest."""
BGR_MEAN, BGR_STD = (0.406, 0.456, 0.485), (0.225, 0.224, 0.229)


@dataclass(frozen=True)
class Box:
    """A rectangle that may be turned: corners (4, 2) as x, y from its upper left one clockwise, and the detector's mean inside it."""

    corners: np.ndarray
    score: float

    @property
    def size(self) -> tuple[float, float]:
        """Width and height."""
        a, b, _, d = self.corners
        return float(np.linalg.norm(b - a)), float(np.linalg.norm(d - a))


def smallest_rectangle(points: np.ndarray) -> np.ndarray | None:
    """(4, 2) corners, clockwise on the screen, of the rectangle of least area around points (n, 2); None where they lie on a line."""
    try:
        hull = points[ConvexHull(points).vertices]
    except QhullError:
        return None
    edges = np.roll(hull, -1, 0) - hull
    best: tuple[float, np.ndarray] | None = None
    for angle in np.unique(np.arctan2(edges[:, 1], edges[:, 0]) % (math.pi / 2)):
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        turned = hull @ turn
        (x0, y0), (x1, y1) = turned.min(0), turned.max(0)
        area = (x1 - x0) * (y1 - y0)
        if best is None or area < best[0] - 1e-9:
            best = area, np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]]) @ turn.T
    return None if best is None else from_upper_left(best[1])


def from_upper_left(corners: np.ndarray) -> np.ndarray:
    """Clockwise corners, from the upper one of the two on the left."""
    left = np.argsort(corners[:, 0], kind="stable")[:2]
    return np.roll(corners, -int(left[np.argmin(corners[left, 1])]), 0)


def grown(corners: np.ndarray, by: float) -> np.ndarray:
    """The rectangle with each side moved outwards by so many pixels."""
    along = (corners[1] - corners[0]) / max(np.linalg.norm(corners[1] - corners[0]), 1e-9)
    down = (corners[3] - corners[0]) / max(np.linalg.norm(corners[3] - corners[0]), 1e-9)
    signs = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    return corners + by * (signs[:, :1] * along + signs[:, 1:] * down)


def mean_inside(probability: np.ndarray, corners: np.ndarray) -> float:
    """Mean of a map (H, W) over the pixels whose centres are in a rectangle."""
    height, width = probability.shape
    (x0, y0), (x1, y1) = np.floor(corners.min(0)).astype(int), np.ceil(corners.max(0)).astype(int)
    ys, xs = np.mgrid[max(y0, 0) : min(y1, height - 1) + 1, max(x0, 0) : min(x1, width - 1) + 1]
    off = np.stack([xs, ys], -1) - corners[0]
    inside = np.ones(xs.shape, bool)
    for side in (corners[1] - corners[0], corners[3] - corners[0]):
        length = np.linalg.norm(side)
        place = off @ side / length
        inside &= (place >= -0.5) & (place <= length + 0.5)
    return float(probability[ys, xs][inside].mean()) if inside.any() else 0.0


def boxes_in(probability: np.ndarray, width: int, height: int) -> list[Box]:
    """The lines of text in a map of probabilities (H, W), in pixels of the picture of this size, in the order of reading."""
    labels, count = ndimage.label(probability > THRESHOLD, structure=np.ones((3, 3)))
    scale = np.array([width / probability.shape[1], height / probability.shape[0]])
    found: list[Box] = []
    for k, (rows, columns) in enumerate(ndimage.find_objects(labels), 1):
        ys, xs = np.nonzero(labels[rows, columns] == k)
        corners = smallest_rectangle(np.stack([xs + columns.start, ys + rows.start], 1).astype(np.float64))
        if corners is None or min(Box(corners, 0).size) < SMALLEST:
            continue
        wide, high = Box(corners, 0).size
        if (score := mean_inside(probability, corners)) >= BOX_THRESHOLD:
            found.append(Box(grown(corners, wide * high * UNCLIP / (2 * (wide + high))) * scale, score))
    return in_order(found)


def in_order(boxes: list[Box]) -> list[Box]:
    """Lines from above, and of one line from the left."""
    lines: list[list[Box]] = []
    for box in sorted(boxes, key=lambda b: b.corners[:, 1].mean()):
        first = lines[-1][0] if lines else None
        if first is not None and box.corners[:, 1].mean() - first.corners[:, 1].mean() < min(first.size[1], box.size[1]) / 2:
            lines[-1].append(box)
        else:
            lines.append([box])
    return [box for line in lines for box in sorted(line, key=lambda b: b.corners[:, 0].mean())]


def cut(image: Image.Image, box: Box) -> Image.Image:
    """The box upright; one that is much higher than wide is turned to the left, as PaddleOCR does."""
    wide, high = (max(1, round(side)) for side in box.size)
    upper_left, upper_right, lower_right, lower_left = (tuple(corner) for corner in box.corners)
    quad = (*upper_left, *lower_left, *lower_right, *upper_right)
    line = image.transform((wide, high), Image.Transform.QUAD, quad, Image.Resampling.BILINEAR)
    return line.transpose(Image.Transpose.ROTATE_90) if high >= 1.5 * wide else line


def detector_input(image: Image.Image) -> Tensor:
    """(1, 3, H, W): the longer side at most 960, both sides multiples of 32, BGR, normalised."""
    shrink = min(1.0, LONGEST / max(image.size))
    wide, high = (max(STEP, round(int(side * shrink) / STEP) * STEP) for side in image.size)
    pixels = torch.from_numpy(np.array(image.resize((wide, high), Image.Resampling.BILINEAR))).permute(2, 0, 1).float() / 255
    return ((pixels - torch.tensor(BGR_MEAN)[:, None, None]) / torch.tensor(BGR_STD)[:, None, None]).flip(0)[None]


def recogniser_input(line: Image.Image) -> Tensor:
    """(1, 3, 48, W): colours in [-1, 1], 0 where a short line is padded."""
    ratio = line.width / line.height
    wide = min(math.ceil(HEIGHT * ratio) if ratio <= WIDTH / HEIGHT else int(HEIGHT * ratio), WIDEST)
    pixels = torch.from_numpy(np.array(line.resize((max(1, wide), HEIGHT), Image.Resampling.BILINEAR))).permute(2, 0, 1).float()
    return torch.nn.functional.pad(pixels / 127.5 - 1, (0, max(0, WIDTH - max(1, wide))))[None]


def decoded(probabilities: Tensor, characters: list[str]) -> str:
    """The text of CTC probabilities (T, characters): the likeliest each time, repeated ones once, without the blank (0)."""
    best = probabilities.argmax(-1)
    keep = torch.ones_like(best, dtype=torch.bool)
    keep[1:] = best[1:] != best[:-1]
    return "".join(characters[k] for k in best[keep & (best != 0)].tolist())


class TextReader:
    """A detector and a recogniser of transformers, in evaluation, and the recogniser's characters (the first is the blank)."""

    def __init__(self, detector: Any, recogniser: Any, characters: list[str], device: torch.device, dtype: torch.dtype):
        self.detector, self.recogniser = detector.to(device, dtype), recogniser.to(device, dtype)
        self.characters, self.device, self.dtype = characters, device, dtype

    @torch.no_grad()
    def read(self, image: Image.Image) -> list[str]:
        """The lines of text in a picture, in the order of reading; each line alone, so that none depends on the others."""
        image = image.convert("RGB")
        found = self.detector(detector_input(image).to(self.device, self.dtype)).last_hidden_state
        lines = [cut(image, box) for box in boxes_in(found[0, 0].float().cpu().numpy(), *image.size)]
        read = [self.recogniser(recogniser_input(line).to(self.device, self.dtype)).last_hidden_state[0] for line in lines]
        return [text for one in read if (text := decoded(one.float().cpu(), self.characters))]
