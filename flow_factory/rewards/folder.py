"""A folder of pictures or videos as samples to score, with the prompts and columns that belong to them."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from flow_factory.data.columns import Naming
from flow_factory.data.media import open_image, open_video
from flow_factory.data.reader import RowFile
from flow_factory.types import Row
from flow_factory.utils.errors import UserError, file_errors
from flow_factory.utils.registry import nearest

ENDINGS = {
    "image": (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"),
    "video": (".mp4", ".mov", ".webm", ".mkv", ".avi", ".gif"),
}


class Scored(NamedTuple):
    """A file and its row."""

    file: Path
    row: Row

    def open(self) -> Any:
        """The picture, or the `Clip`.

        Raises:
            DataError: the file is damaged.
        """
        return open_image(self.file, "--images") if self.file.suffix.lower() in ENDINGS["image"] else open_video(self.file, "--images")


def read_folder(images: Path, prompts: Path | None) -> list[Scored]:
    """The images or videos of a folder in the order of their names, with their prompts.

    Args:
        prompts: a .txt with a prompt per line, in the order of the files' names; or a .jsonl whose column `image` (`video`) names the
            file, the first one of `images` if others are conditions. None: the prompt of `a.png` is in `a.txt`, or is empty.

    Raises:
        UserError: there are no files, both images and videos, or the prompts do not match them.
    """
    with file_errors("--images", images, "name a folder of pictures"):
        there = sorted(path for path in images.iterdir() if path.is_file())
    files = {kind: [path for path in there if path.suffix.lower() in endings] for kind, endings in ENDINGS.items()}
    if not any(files.values()):
        raise UserError(f"--images: {images} has no picture ({', '.join(ENDINGS['image'])}) and no video ({', '.join(ENDINGS['video'])})")
    if all(files.values()):
        raise UserError(f"--images: {images} has pictures and videos ({files['image'][0].name}, {files['video'][0].name}); separate them")
    found = files["image"] or files["video"]
    if prompts is None:
        return [Scored(path, Row(k, _beside(path), source=str(path))) for k, path in enumerate(found)]
    if prompts.suffix not in (".txt", ".jsonl"):
        raise UserError(f"--prompts: {prompts}: write a .txt, a prompt a line, or a .jsonl whose column image names the file")
    with file_errors("--prompts", prompts, "name a file that can be read"):
        rows = RowFile(prompts, Naming({"image": images, "video": images}, {}, prompts.parent))
    if prompts.suffix == ".jsonl":
        return [_named(rows[k], found) for k in range(len(rows))]
    if len(rows) != len(found):
        raise UserError(
            f"--prompts: {prompts} has {len(rows)} prompts, and {images} {len(found)} files; write a prompt for each file, in order"
        )
    return [Scored(path, rows[k]) for k, path in enumerate(found)]


def _beside(path: Path) -> str:
    text = path.with_suffix(".txt")
    with file_errors("--images", text, "it must be readable"):
        return " ".join(text.read_text("utf-8-sig", errors="replace").split()) if text.is_file() else ""


def _named(row: Row, found: Sequence[Path]) -> Scored:
    files = [*row.images, *row.videos]
    if not files:
        raise UserError(f"--prompts: {row.source}: names no file in the column image or video")
    path = Path(files[0])
    if path not in found:
        near = nearest(path.name, [one.name for one in found])
        raise UserError(f"--prompts: {row.source}: {path} is none of the files of --images.{near}")
    return Scored(path, replace(row, images=tuple(row.images[1:]), videos=tuple(row.videos if row.images else row.videos[1:])))


def groups_of(scored: Sequence[Scored]) -> Iterator[tuple[Row, list[Scored]]]:
    """Groups: files with the same prompt and columns, in any order."""

    def key(one: Scored) -> str:
        return repr((one.row.prompt, sorted(one.row.columns.items(), key=str), one.row.images, one.row.videos))

    for _, part in groupby(sorted(scored, key=key), key=key):
        group = list(part)
        yield group[0].row, group
