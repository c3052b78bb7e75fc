"""The condition files of a row: images and videos, and files for further arguments of the pipeline's call (`data.columns`)."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from flow_factory.config.media_arguments import media_kind
from flow_factory.data.columns import DataError
from flow_factory.data.media import open_image, open_mask, open_video
from flow_factory.data.media_checks import Extent, Kind
from flow_factory.data.sounds import open_sound
from flow_factory.types import Row


def inputs_of(row: Row) -> Iterator[tuple[str, Kind, Sequence[str]]]:
    """(argument, kind, paths) of each further argument for which the row has files, sorted by kind and name."""
    for name, files in sorted(row.image_inputs.items()):
        yield name, "mask" if media_kind(name) == "mask" else "image", files
    for name, files in sorted(row.video_inputs.items()):
        yield name, "video", files
    for name, files in sorted(row.audio_inputs.items()):
        yield name, "audio", files


def condition_files(row: Row) -> list[tuple[str, Kind]]:
    """(path, kind) of all condition files: the images, the videos, and those of `inputs_of`."""
    files: list[tuple[str, Kind]] = [*((path, "image") for path in row.images), *((path, "video") for path in row.videos)]
    return files + [(path, kind) for _, kind, paths in inputs_of(row) for path in paths]


def open_inputs(row: Row) -> dict[str, list[Any]]:
    """What the files of `inputs_of` hold, by argument, an entry a file: an image in RGB, a mask in mode L, a video's frames, a `Sound`.

    Raises:
        DataError: a file cannot be used.
    """
    return {name: [opened(path, row.source, kind) for path in paths] for name, kind, paths in inputs_of(row)}


def opened(path: str, where: str, kind: Kind) -> Any:
    """See `open_inputs`.

    Raises:
        DataError: the file cannot be used.
    """
    if kind == "video":
        return open_video(path, where).frames
    return {"image": open_image, "mask": open_mask, "audio": open_sound}[kind](path, where)


def check_agreement(row: Row, sizes: Mapping[str, Extent]) -> None:
    """A mask must have the proportions of what it masks, since the pipeline scales both to one size; videos must be equally long.

    Args:
        sizes: (width, height, frames) of each of the row's files, upright.

    Raises:
        DataError: they do not agree.
    """
    named = {name: paths for name, _, paths in inputs_of(row)}
    for mask in (name for name in named if media_kind(name) == "mask" or name == "mask_video"):
        name, masked = _masked(mask, row, named)
        for one, other in product(named[mask], masked):
            _require_proportions(row, mask, one, name, other, sizes)
    videos = {name: paths[0] for name, paths in (("video", row.videos), *((n, named[n]) for n in sorted(row.video_inputs))) if paths}
    first = next(iter(videos.items()), ("", ""))
    for name, path in videos.items():
        if (frames := sizes[path][2]) != (wanted := sizes[first[1]][2]):
            raise DataError(f"{row.source}: {path}: {name} has {frames} frames, and {first[0]} has {wanted}; they must be as many")


def _masked(mask: str, row: Row, named: Mapping[str, Sequence[str]]) -> tuple[str, Sequence[str]]:
    """The argument that a mask belongs to, and its files: `control_image` of `control_mask`, else the row's picture or video."""
    stem = mask.removesuffix("_image").removesuffix("mask")
    own = {"image": row.images, "images": row.images, "video": row.videos} | dict(named)
    for name in (f"{stem}image", "image", "video", "background_video", "pose_video"):
        if name != mask and own.get(name):
            return name, own[name]
    return "", []


def _require_proportions(row: Row, mask: str, path: str, name: str, other: str, sizes: Mapping[str, Extent]) -> None:
    (width, height, _), (wide, high, _) = sizes[path], sizes[other]
    if abs(width * high - wide * height) > max(wide, high):  # off by more than a pixel of the mask
        raise DataError(
            f"{row.source}: {path}: {mask} is {width} x {height} pixels, and {name} is {wide} x {high} ({other}): "
            "a mask has the proportions of its picture"
        )
