"""Condition images that equal a row's own files: the cache stores a reference to the file, not a copy."""

from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import version
from typing import Any
from weakref import WeakValueDictionary

from PIL import Image

from flow_factory.data.media import check_media, open_image, open_video
from flow_factory.data.media_checks import Kind
from flow_factory.types import Row

_version = cache(version)
_opened: WeakValueDictionary[tuple[str, int], Image.Image] = WeakValueDictionary()


class FileChanged(Exception):
    """A row's file has changed since the row was encoded; the text is its path."""


def decoders(row: Row) -> list[str]:
    """The package versions on which the pixels of the row's files depend."""
    return [_version("pillow")] * bool(row.images or row.videos) + [_version("av")] * bool(row.videos)


def files_of(row: Row) -> list[tuple[Kind, int, str]]:
    """(kind, index in the row, path) of each file."""
    images, videos = enumerate(row.images), enumerate(row.videos)
    return [*(("image", k, path) for k, path in images), *(("video", k, path) for k, path in videos)]


def frames_of(kind: str, path: str, where: str) -> list[Image.Image]:
    """All frames of a file, rotated upright."""
    return [open_image(path, where)] if kind == "image" else list(open_video(path, where).frames)


class FileReferences:
    """Replaces images that are frames of a row's files by references. Each file is decoded once; a video's frames must come in order.

    Images are compared by their pixels, since an adapter may have changed what it has read.

    Args:
        hash_of: returns the hash of a file's content.
    """

    def __init__(self, row: Row, hash_of: Callable[[str], str]):
        self.row, self.hash_of = row, hash_of
        self.frames: dict[str, list[Image.Image]] = {}
        self.next: dict[str, int] = {}

    def __call__(self, image: Image.Image) -> list[Any] | None:
        """The image's reference [kind, index in the row, hash of the file, frame number]; None: it is in no file."""
        for kind, k, path in files_of(self.row):
            digest = self.hash_of(path)
            number = self.next.get(path, 0) if kind == "video" else 0
            if self._size_fits(image, kind, path) and number < len(self.frames[path]) and _same(image, self.frames[path][number]):
                self.next[path] = number + 1
                return [kind, k, digest, number]
        return None

    def _size_fits(self, image: Image.Image, kind: Kind, path: str) -> bool:
        """Whether the image has the size of the file's frames; if so, they are decoded."""
        if path not in self.frames:
            width, height, _ = check_media(path, self.row.source, kind)
            if sorted((width, height)) != sorted(image.size):  # the stored frame may be rotated
                return False
            self.frames[path] = frames_of(kind, path, self.row.source)
        return True


def _same(a: Image.Image, b: Image.Image) -> bool:
    return a.size == b.size and a.tobytes() == b.tobytes()


class ReferencedImages:
    """Opens the images of one row that `FileReferences` has found. An image is shared by all who hold it."""

    def __init__(self, row: Row, hash_of: Callable[[str], str]):
        self.row, self.hash_of = row, hash_of
        self.frames: dict[str, list[Image.Image]] = {}

    def __call__(self, reference: Sequence[Any]) -> Image.Image:
        """Raises:
        FileChanged: the file's content has changed.
        DataError: the file cannot be read.
        """
        kind, k, digest, number = reference
        path = (self.row.images if kind == "image" else self.row.videos)[k]
        if self.hash_of(path) != digest:
            raise FileChanged(path)
        image = _opened.get((digest, number))
        if image is None:
            if path not in self.frames:
                self.frames[path] = frames_of(kind, path, self.row.source)
            image = _opened[digest, number] = self.frames[path][number]
        return image
