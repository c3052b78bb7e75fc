"""Thumbnails of a data set's files for a contact sheet; an unusable file is a grey tile with a cross."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from PIL import Image, ImageDraw

from flow_factory.data.columns import DataError
from flow_factory.data.inputs import condition_files, opened
from flow_factory.data.media import check_media, first_frame
from flow_factory.data.media_checks import Kind
from flow_factory.data.survey import files_of
from flow_factory.types import Row, Sample

SIDE = 320
"""Pixels of a thumbnail's longer side."""
MOST_CONDITIONS = 4
"""How many condition files are shown beside a sample."""
LOOKED_AT = 10_000
"""How many rows are searched for images."""


def thumbnails(rows: Sequence[Row], most: int) -> list[Sample]:
    """Thumbnails of the first images and first frames of videos, at most `most`, each with its row's prompt."""
    return list(islice(_all(islice((rows[k] for k in range(len(rows))), LOOKED_AT)), most))


def _all(rows: Iterable[Row]) -> Iterator[Sample]:
    for row in rows:
        try:
            files = files_of(row)
        except DataError as error:
            yield Sample(f"row {row.id}: {str(error).removeprefix(f'{row.source}: ')}", crossed(), {})
            continue
        for path, kind in ((path, kind) for path, kind in files if kind != "audio"):
            try:
                yield Sample(row.prompt, small(path, row.source, kind), {})
            except DataError as error:
                name = f"row {row.id}" if row.inside else Path(path).name
                yield Sample(f"{name}: {str(error).removeprefix(f'{row.source}: ').removeprefix(f'{path}: ')}", crossed(), {})


def condition_pictures(row: Row) -> tuple[Image.Image, ...]:
    """Thumbnails of the row's first condition images, masks and first frames of videos, at most `MOST_CONDITIONS`."""
    try:
        files = [(path, kind) for path, kind in condition_files(row) if kind != "audio"][:MOST_CONDITIONS]
        return tuple(small(path, row.source, kind) for path, kind in files)
    except DataError:  # a file has gone since it was encoded: the run needs it no more
        return (crossed(),)


def small(path: str, where: str, kind: Kind) -> Image.Image:
    """The thumbnail of one file.

    Raises:
        DataError: see `check_media`, `opened`.
    """
    check_media(path, where, kind)
    image = first_frame(path, where) if kind == "video" else opened(path, where, kind)
    image.thumbnail((SIDE, SIDE))
    return image


def crossed() -> Image.Image:
    """The tile for a file that cannot be shown."""
    tile = Image.new("RGB", (SIDE // 2, SIDE // 2), "#d1d9e0")
    for line in ((0, 0, *tile.size), (0, tile.height, tile.width, 0)):
        ImageDraw.Draw(tile).line(line, "#59636e", 2)
    return tile
