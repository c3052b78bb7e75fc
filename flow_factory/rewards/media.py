"""Pictures and videos in the forms that rewards take."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from flow_factory.data.media import open_image, open_video
from flow_factory.types import Clip, Row


def kind_of(media: Any) -> str:
    """ "image" for a PIL image, an array (H, W, 3) or a tensor (3, H, W); "video" for a `Clip`, and a list, array or tensor of those."""
    return "image" if isinstance(media, Image.Image) or isinstance(media, np.ndarray | Tensor) and media.ndim == 3 else "video"


def to_pil(image: Image.Image | np.ndarray | Tensor) -> Image.Image:
    """The picture of an array (H, W, 3) or a tensor (3, H, W); floats are in [0, 1] and are rounded to the nearest of 256 steps."""
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, Tensor):
        image = image.detach().permute(1, 2, 0).cpu()
        image = (image.float() if image.is_floating_point() else image).numpy()
    return Image.fromarray(image if image.dtype == np.uint8 else np.rint(image.clip(0, 1) * 255).astype(np.uint8))


def to_tensor(image: Image.Image, device: torch.device) -> Tensor:
    """(3, H, W) float32 in [0, 1]."""
    pixels = torch.from_numpy(np.array(image.convert("RGB")))
    return pixels.to(device).permute(2, 0, 1).float() / 255


def convert(media: Any, device: torch.device | None) -> Any:
    """An image or a video as PIL, or as a tensor (C, H, W) or (T, C, H, W) on `device` where one is given."""
    if kind_of(media) == "image":
        return to_pil(media) if device is None else to_tensor(to_pil(media), device)
    frames = [to_pil(frame) for frame in (media.frames if isinstance(media, Clip) else media)]
    return frames if device is None else torch.stack([to_tensor(frame, device) for frame in frames])


def convert_conditions(conditions: Sequence[Any], device: torch.device | None) -> Any:
    """One sample's condition images or videos: a list, or one stacked tensor where all are tensors of one shape."""
    parts = [convert(c, device) for c in conditions]
    return torch.stack(parts) if device is not None and len({p.shape for p in parts}) == 1 else parts


def condition_images(row: Row) -> list[Image.Image]:
    """The row's condition images.

    Raises:
        DataError: one is damaged.
    """
    return [_image(path, row.source) for path in row.images]


def condition_videos(row: Row) -> list[list[Image.Image]]:
    """The frames of each of the row's condition videos; see `condition_images`."""
    return [_video(path, row.source).frames for path in row.videos]


# small, since a video may be large: they serve the batches and the rewards of one row, which follow each other
_image = lru_cache(maxsize=8)(open_image)
_video = lru_cache(maxsize=2)(open_video)


def unfold(image: list[Image.Image] | None, video: list[list[Image.Image]] | None) -> tuple[list[Image.Image], list[int]]:
    """(pictures, how many of them each sample has): an image counts one, a video its frames."""
    if image is not None:
        return image, [1] * len(image)
    videos = video or []
    return [frame for frames in videos for frame in frames], [len(frames) for frames in videos]


def fold(scores: Tensor, counts: list[int]) -> Tensor:
    """(n,) mean over each sample's pictures, every frame counted, of scores (sum of counts,)."""
    return torch.stack([part.mean() for part in scores.split(counts)])
