"""Media that are given: demonstrations or pairs of a data set instead of rollouts, for `sft` and offline DPO."""

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


def brings(row: Row, columns: Sequence[str]) -> bool:
    """Whether the row has media in all of these columns."""
    return bool(columns) and all(column in row.columns for column in columns)


def given_files(data: DataConfig, row: Row, columns: Sequence[str], video: bool) -> list[Path]:
    """The files that the row names in these columns; relative names start where condition images or videos do.

    Raises:
        DataError: a column is missing, or is no file's name.
    """
    folder = Path((data.video_dir if video else data.image_dir) or Path(data.dataset_dir) / ("videos" if video else "images"))
    for column in columns:
        if not isinstance(row.columns.get(column), str):
            there = ", ".join(row.columns) or "none"
            wanted = " and ".join(map(repr, columns))
            many = "the name of a file" if len(columns) == 1 else "the names of two files"
            raise DataError(f"{row.source}: what is learnt from wants {many} in {wanted}; columns: {there}")
        require_file_name(row.columns[column], repr(column), "video" if video else "image", row.source)
    return [folder / row.columns[column] for column in columns]


def require_frames(row: Row, frames: int, wanted: int) -> None:
    """Raises:
    DataError: a clip has fewer frames than are trained on.
    """
    if frames < wanted:
        raise DataError(f"{row.source}: a clip of {frames} frames, where {wanted} are trained on (num_frames)")


class GivenMedia:
    """The states of a row's media, encoded when its turn comes: what is kept of a data set are its files.

    Args:
        data: of each data set, by its name.
        columns: that name a row's media.
        call: the pipeline's arguments, with the size that media are brought to.
    """

    def __init__(self, data: Mapping[str, DataConfig], adapter: "ModelAdapter", columns: Sequence[str], call: Mapping[str, Any]):
        self.data, self.adapter, self.columns, self.call = data, adapter, columns, call

    @torch.no_grad()
    def states(self, row: Row, cond: Cond, generator: Generator | None = None) -> tuple[Tensor, list[Any]]:
        """((k, ...) float32 states and the media, in the columns' order), each scaled to cover the size that is trained on and cropped.

        Args:
            generator: of a draw from the VAE's distribution; None takes its mode.
        """
        video = self.adapter.draws == "video"
        files = given_files(self.data[row.dataset], row, self.columns, video)
        media = [self._fitted(open_video(p, row.source) if video else open_image(p, row.source), row, cond) for p in files]
        return self.adapter.to_state(media, self.call, generator), media

    def _fitted(self, media: Any, row: Row, cond: Cond) -> Any:
        size = (self.call["width"], self.call["height"])
        if not isinstance(media, Clip):
            return ImageOps.fit(media, size, Image.Resampling.LANCZOS)
        given = cond.get("video")  # video to video: as many as that one has
        wanted = len(given) if given is not None else self.adapter.frames(self.call)
        require_frames(row, len(media.frames), wanted)
        return Clip([ImageOps.fit(f, size, Image.Resampling.LANCZOS) for f in media.frames[:wanted]], media.fps)
