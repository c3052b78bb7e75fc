"""Preferences that are given: pairs of a data set's media instead of rollouts, for offline DPO."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image, ImageOps
from torch import Tensor

from flow_factory.config import DataConfig
from flow_factory.data.columns import require_file_name
from flow_factory.data.media import open_image, open_video
from flow_factory.data.reader import DataError
from flow_factory.types import Clip, Cond, Row

if TYPE_CHECKING:
    from flow_factory.models.base import ModelAdapter

COLUMNS = ("chosen", "rejected")


def pair_files(data: DataConfig, row: Row, video: bool) -> list[Path]:
    """The files of the row's columns `chosen` and `rejected`; relative names start where condition images or videos do.

    Raises:
        DataError: a column is missing, or is no file's name.
    """
    folder = Path((data.video_dir if video else data.image_dir) or Path(data.dataset_dir) / ("videos" if video else "images"))
    for column in COLUMNS:
        if not isinstance(row.columns.get(column), str):
            there = ", ".join(row.columns) or "none"
            raise DataError(f"{row.source}: train.offline wants the names of two files in 'chosen' and 'rejected'; columns: {there}")
        require_file_name(row.columns[column], repr(column), "video" if video else "image", row.source)
    return [folder / row.columns[column] for column in COLUMNS]


def require_frames(row: Row, frames: int, wanted: int) -> None:
    """Raises:
    DataError: a clip of a pair has fewer frames than are trained on.
    """
    if frames < wanted:
        raise DataError(f"{row.source}: a clip of {frames} frames, where {wanted} are trained on (num_frames)")


class Pairs:
    """The states of a row's two media, encoded when its turn comes: what is kept of a data set are its files."""

    def __init__(self, data: Mapping[str, DataConfig], adapter: "ModelAdapter", call: Mapping[str, Any]):
        """`data`: of each data set, by its name."""
        self.data, self.adapter, self.call = data, adapter, call

    @torch.no_grad()
    def states(self, row: Row, cond: Cond) -> tuple[Tensor, list[Any]]:
        """((2, ...) float32 states, chosen first, and the media), each scaled to cover the size that is trained on and cropped to it."""
        video = self.adapter.draws == "video"
        files = pair_files(self.data[row.dataset], row, video)
        opened = [open_video(p, row.source) if video else open_image(p, row.source) for p in files]
        media = [self._fitted(one, row, cond) for one in opened]
        return self.adapter.to_state(media, self.call), media

    def _fitted(self, media: Any, row: Row, cond: Cond) -> Any:
        size = (self.call["width"], self.call["height"])
        if not isinstance(media, Clip):
            return ImageOps.fit(media, size, Image.Resampling.LANCZOS)
        given = cond.get("video")  # video to video: as many as that one has
        wanted = len(given) if given is not None else self.adapter.frames(self.call)
        require_frames(row, len(media.frames), wanted)
        return Clip([ImageOps.fit(f, size, Image.Resampling.LANCZOS) for f in media.frames[:wanted]], media.fps)
