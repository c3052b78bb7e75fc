"""Differentiable image processing on pixels (n, 3, h, w) in [0, 1], in float32.

PIL rounds to 256 levels after each resampling, and these functions do not, so scores differ slightly.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad


def resized(pixels: Tensor, height: int, width: int) -> Tensor:
    """Bicubic resizing with antialiasing, as in PIL, clamped to [0, 1]."""
    if pixels.shape[-2:] == (height, width):
        return pixels
    return interpolate(pixels, (height, width), mode="bicubic", antialias=True).clamp(0, 1)


def cropped(pixels: Tensor, side: int, edge: int | None = None, whole: Callable[[float], int] = round) -> Tensor:
    """The middle square of `side` pixels, after the shorter side was resized to `edge` (`side` by default): see `media.cropped`.

    Args:
        whole: the rounding of half a pixel: torchvision rounds, transformers uses math.floor.
    """
    short, edge = min(pixels.shape[-2:]), edge or side
    height, width = (edge if s == short else int(edge * s / short) for s in pixels.shape[-2:])
    top, left = whole((height - side) / 2), whole((width - side) / 2)
    return resized(pixels, height, width)[..., top : top + side, left : left + side]


def padded(pixels: Tensor, side: int) -> Tensor:
    """The whole image, with `side` pixels on its longer side, in the middle of a black square."""
    long = max(pixels.shape[-2:])
    height, width = (max(1, round(side * s / long)) for s in pixels.shape[-2:])
    top, left = round((side - height) / 2), round((side - width) / 2)
    return pad(resized(pixels, height, width), (left, side - width - left, top, side - height - top))


def normalised(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(colour - mean) / std."""
    centre, spread = (torch.tensor(list(values), device=pixels.device)[:, None, None] for values in (mean, std))
    return (pixels - centre) / spread
