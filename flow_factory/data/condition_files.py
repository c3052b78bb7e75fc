"""Condition images that equal a row's own files: the cache stores a reference to the file, not a copy."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import version
from typing import Any
from weakref import WeakValueDictionary

from PIL import Image

from flow_factory.data.inputs import condition_files, opened
from flow_factory.data.media import check_media
from flow_factory.data.media_checks import Kind
from flow_factory.types import Row

_version = cache(version)
_opened: WeakValueDictionary[tuple[Kind, str, int], Image.Image] = WeakValueDictionary()


class FileChanged(Exception):
    """A row's file has changed since the row was encoded; the text is its path."""


def decoders(row: Row) -> list[str]:
    """The package versions on which the pixels of the row's files depend."""
    kinds = {kind for _, kind in condition_files(row)}
    return [_version("pillow")] * bool(kinds - {"audio"}) + [_version("av")] * bool(kinds & {"video", "audio"})


def files_of(row: Row) -> list[tuple[Kind, int, str]]:
    """(kind, index among the row's files of this kind, path) of each file with pixels."""
    seen, files = Counter[Kind](), list[tuple[Kind, int, str]]()
    for path, kind in condition_files(row):
        if kind != "audio":
            files.append((kind, seen[kind], path))
            seen[kind] += 1
    return files


def frames_of(kind: Kind, path: str, where: str) -> list[Image.Image]:
    """All frames of a file, rotated upright."""
    return list(opened(path, where, kind)) if kind == "video" else [opened(path, where, kind)]


class FileReferences:
    """Replaces images that are frames of a row's files by references. Each file is decoded once; a video's frames must come in order.

    Images are compared by their pixels, since an adapter may have changed what it has read.

    Args:
        hash_of: returns the hash of a file's content.
    """

    def __init__(self, row: Row, hash_of: Callable[[str], str]):
        self.row, self.hash_of = row, hash_of
        self.frames: dict[tuple[Kind, str], list[Image.Image]] = {}
        self.next: dict[str, int] = {}

    def __call__(self, image: Image.Image) -> list[Any] | None:
        """The image's reference [kind, index in the row, hash of the file, frame number]; None: it is in no file."""
        for kind, k, path in files_of(self.row):
            digest = self.hash_of(path)
            number = self.next.get(path, 0) if kind == "video" else 0
            if not self._size_fits(image, kind, path):
                continue
            frames = self.frames[kind, path]
            if number < len(frames) and _same(image, frames[number]):
                self.next[path] = number + 1
                return [kind, k, digest, number]
        return None

    def _size_fits(self, image: Image.Image, kind: Kind, path: str) -> bool:
        """Whether the image has the size of the file's frames; if so, they are decoded."""
        if (kind, path) not in self.frames:
            width, height, _ = check_media(path, self.row.source, kind)
            if sorted((width, height)) != sorted(image.size):  # the stored frame may be rotated
                return False
            self.frames[kind, path] = frames_of(kind, path, self.row.source)
        return True


def _same(a: Image.Image, b: Image.Image) -> bool:
    return a.size == b.size and a.mode == b.mode and a.tobytes() == b.tobytes()


class ReferencedImages:
    """Opens the images of one row that `FileReferences` has found. An image is shared by all who hold it."""

    def __init__(self, row: Row, hash_of: Callable[[str], str]):
        self.row, self.hash_of = row, hash_of
        self.frames: dict[tuple[Kind, str], list[Image.Image]] = {}

    def __call__(self, reference: Sequence[Any]) -> Image.Image:
        """Raises:
        FileChanged: the file's content has changed.
        DataError: the file cannot be read.
        """
        kind, k, digest, number = reference
        path = [path for its, _, path in files_of(self.row) if its == kind][k]
        if self.hash_of(path) != digest:
            raise FileChanged(path)
        image = _opened.get((kind, digest, number))
        if image is None:
            if (kind, path) not in self.frames:
                self.frames[kind, path] = frames_of(kind, path, self.row.source)
            image = _opened[kind, digest, number] = self.frames[kind, path][number]
        return image
