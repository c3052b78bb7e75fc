"""Images and videos of the data set that are trained on instead of rollouts: demonstrations for `sft`, pairs for offline DPO."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image, ImageOps
from torch import Generator, Tensor

from flow_factory.config import DataConfig
from flow_factory.data.columns import require_file_name
from flow_factory.data.media import open_image, open_video
from flow_factory.data.reader import DataError
from flow_factory.types import Clip, Cond, Row

if TYPE_CHECKING:
    from flow_factory.models.base import ModelAdapter


def has_media(row: Row, columns: Sequence[str]) -> bool:
    """Whether the row has all of these columns."""
    return bool(columns) and all(column in row.columns for column in columns)


def given_files(data: DataConfig, row: Row, columns: Sequence[str], video: bool) -> list[Path]:
    """The files that the row names in these columns; relative names start in `data.video_dir` or `data.image_dir`.

    Raises:
        DataError: a column is missing, or is not a file name.
    """
    folder = Path((data.video_dir if video else data.image_dir) or Path(data.dataset_dir) / ("videos" if video else "images"))
    for column in columns:
        if not isinstance(row.columns.get(column), str):
            present = ", ".join(row.columns) or "none"
            expected = " and ".join(map(repr, columns))
            names = "a file name" if len(columns) == 1 else "two file names"
            raise DataError(f"{row.source}: training needs {names} in {expected}; columns: {present}")
        require_file_name(row.columns[column], repr(column), "video" if video else "image", row.source)
    return [folder / row.columns[column] for column in columns]


def require_frames(row: Row, frames: int, needed: int) -> None:
    """Raises:
    DataError: a clip has fewer frames than training needs.
    """
    if frames < needed:
        raise DataError(f"{row.source}: the clip has {frames} frames; training needs {needed} (num_frames)")


class GivenMedia:
    """Encodes the media of rows to latents on demand; nothing but the files is stored.

    Args:
        data: data set name -> its `data` section.
        columns: the columns that name a row's media.
        call: the pipeline's arguments, with the size to which media are scaled.
    """

    def __init__(self, data: Mapping[str, DataConfig], adapter: "ModelAdapter", columns: Sequence[str], call: Mapping[str, Any]):
        self.data, self.adapter, self.columns, self.call = data, adapter, columns, call

    @torch.no_grad()
    def states(self, row: Row, cond: Cond, generator: Generator | None = None) -> tuple[Tensor, list[Any]]:
        """((k, ...) float32 latents, the k images or clips), in the columns' order, scaled to cover the training size and cropped.

        Args:
            generator: samples from the VAE's distribution; None takes its mode.
        """
        video = self.adapter.draws == "video"
        files = given_files(self.data[row.dataset], row, self.columns, video)
        media = [self._fitted(open_video(p, row.source) if video else open_image(p, row.source), row, cond) for p in files]
        return self.adapter.to_state(media, self.call, generator), media

    def _fitted(self, media: Any, row: Row, cond: Cond) -> Any:
        size = (self.call["width"], self.call["height"])
        if not isinstance(media, Clip):
            return ImageOps.fit(media, size, Image.Resampling.LANCZOS)
        condition = cond.get("video")  # video to video: the target has as many frames as the condition
        needed = len(condition) if condition is not None else self.adapter.frames(self.call)
        require_frames(row, len(media.frames), needed)
        return Clip([ImageOps.fit(f, size, Image.Resampling.LANCZOS) for f in media.frames[:needed]], media.fps)
