"""The conversion of images and videos to the forms that rewards take."""

from collections.abc import Callable, Sequence
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


CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def normalised(image: Image.Image, mean: Sequence[float] = CLIP_MEAN, std: Sequence[float] = CLIP_STD) -> Tensor:
    """(3, H, W) float32 on the CPU, (colour - mean) / std of colours in [0, 1]."""
    return (to_tensor(image, torch.device("cpu")) - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def cropped(image: Image.Image, side: int) -> Image.Image:
    """The middle square of the picture, whose shorter side becomes `side` pixels (bicubic): as torchvision's Resize and CenterCrop."""
    width, height = image.size
    short = min(width, height)
    wide, high = (side if s == short else int(side * s / short) for s in (width, height))
    left, top = round((wide - side) / 2), round((high - side) / 2)
    return image.convert("RGB").resize((wide, high), Image.Resampling.BICUBIC).crop((left, top, left + side, top + side))


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
        DataError: a file is damaged.
    """
    return [_image(path, row.source) for path in row.images]


def condition_videos(row: Row) -> list[list[Image.Image]]:
    """The frames of each of the row's condition videos; see `condition_images`."""
    return [list(_video(path, row.source).frames) for path in row.videos]


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


def scored(
    score: Callable[[list[str], list[Image.Image]], Tensor], prompts: list[str], image: list | None, video: list | None, size: int
) -> Tensor:
    """(n,) scores of n images or videos by a function of at most `size` texts and pictures; a video's is the mean over all its frames."""
    pictures, counts = unfold(image, video)
    texts = [p for p, count in zip(prompts, counts, strict=True) for _ in range(count)]
    return fold(torch.cat([score(texts[k : k + size], pictures[k : k + size]) for k in range(0, len(pictures), size)]), counts)
