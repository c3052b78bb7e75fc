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
    """A row's file is not what it was when the row was encoded; the text is its path."""


def decoders(row: Row) -> list[str]:
    """What the pixels of the row's files depend on beside the files."""
    return [_version("pillow")] * bool(row.images or row.videos) + [_version("av")] * bool(row.videos)


def files_of(row: Row) -> list[tuple[Kind, int, str]]:
    """Kind, place in the row, path."""
    images, videos = enumerate(row.images), enumerate(row.videos)
    return [*(("image", k, path) for k, path in images), *(("video", k, path) for k, path in videos)]


def frames_of(kind: str, path: str, where: str) -> list[Image.Image]:
    """All pictures of a file, upright."""
    return [open_image(path, where)] if kind == "image" else list(open_video(path, where).frames)


class Seeker:
    """Finds pictures in a row's files, each of which is decoded once; of a video in the order of its frames.

    They are compared by their pixels, since an adapter may have changed what it has read.

    Args:
        hash_of: of a file's content.
    """

    def __init__(self, row: Row, hash_of: Callable[[str], str]):
        self.row, self.hash_of = row, hash_of
        self.frames: dict[str, list[Image.Image]] = {}
        self.next: dict[str, int] = {}

    def __call__(self, picture: Image.Image) -> list[Any] | None:
        """What `Opener` finds it by: kind, place in the row, hash of the file, number of the frame; None: it is in no file."""
        for kind, k, path in files_of(self.row):
            digest = self.hash_of(path)
            number = self.next.get(path, 0) if kind == "video" else 0
            if self._fits(picture, kind, path) and number < len(self.frames[path]) and _same(picture, self.frames[path][number]):
                self.next[path] = number + 1
                return [kind, k, digest, number]
        return None

    def _fits(self, picture: Image.Image, kind: Kind, path: str) -> bool:
        """Whether its size is that of the file's pictures, which are decoded then."""
        if path not in self.frames:
            width, height, _ = check_media(path, self.row.source, kind)
            if sorted((width, height)) != sorted(picture.size):  # it may lie on its side
                return False
            self.frames[path] = frames_of(kind, path, self.row.source)
        return True


def _same(a: Image.Image, b: Image.Image) -> bool:
    return a.size == b.size and a.tobytes() == b.tobytes()


class Opener:
    """The pictures that a `Seeker` has found, of one row; shared with all who hold them."""

    def __init__(self, row: Row, hash_of: Callable[[str], str]):
        self.row, self.hash_of = row, hash_of
        self.frames: dict[str, list[Image.Image]] = {}

    def __call__(self, found: Sequence[Any]) -> Image.Image:
        """Raises:
        FileChanged: the file has other content by now.
        DataError: it cannot be read.
        """
        kind, k, digest, number = found
        path = (self.row.images if kind == "image" else self.row.videos)[k]
        if self.hash_of(path) != digest:
            raise FileChanged(path)
        picture = _opened.get((digest, number))
        if picture is None:
            if path not in self.frames:
                self.frames[path] = frames_of(kind, path, self.row.source)
            picture = _opened[digest, number] = self.frames[path][number]
        return picture
