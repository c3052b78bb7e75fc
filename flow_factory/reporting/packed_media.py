"""Images and videos as PNG and MP4 bytes, in which they are sent to the main process."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from typing import Any, overload

from PIL import Image

from flow_factory.data.mp4 import EncodedClip, video_bytes
from flow_factory.reporting.pictures import excerpted
from flow_factory.types import Clip

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PackedMedia:
    """One picture or clip."""

    stills: Mapping[int, bytes]
    """PNG of the picture, or of the frames of the clip's `excerpt` by their numbers."""
    frames: int = 0
    """0 for a picture; else the number of frames of the clip."""
    fps: float = 0.0
    video: bytes = b""
    """MP4 of the clip, without its sound as it was drawn, which is beside it."""
    audio: Any = None
    sample_rate: int | None = None

    def opened(self) -> Any:
        """The picture to the bit; or the clip, with the frames of its `excerpt` to the bit and the others as its MP4 has them."""
        if not self.frames:
            return _picture(self.stills[0])
        if not self.video:
            return Clip([_picture(png) for png in self.stills.values()], self.fps)
        return EncodedClip(Frames(self), self.fps, self.audio, self.sample_rate, self.video)


class Frames(Sequence[Image.Image]):
    """Of a clip that came as a file; decoded when others than its `excerpt` are asked for."""

    def __init__(self, packed: PackedMedia):
        self.packed = packed

    @cached_property
    def _all(self) -> list[Image.Image]:
        import av

        stills = {k: _picture(png) for k, png in self.packed.stills.items()}
        width, height = stills[0].size  # an odd side has grown by a pixel
        with av.open(BytesIO(self.packed.video)) as container:
            decoded = [frame.to_image().crop((0, 0, width, height)) for frame in container.decode(video=0)]
        return [stills.get(k, frame) for k, frame in enumerate(decoded)]

    def __len__(self) -> int:
        return self.packed.frames

    def __iter__(self) -> Iterator[Image.Image]:
        return iter(self._all)

    @overload
    def __getitem__(self, index: int) -> Image.Image: ...
    @overload
    def __getitem__(self, index: slice) -> list[Image.Image]: ...
    def __getitem__(self, index: int | slice) -> Image.Image | list[Image.Image]:
        if isinstance(index, int) and index in self.packed.stills:
            return _picture(self.packed.stills[index])
        return self._all[index]


def packed(media: Any) -> PackedMedia:
    """Of a PIL image or a `Clip`. Of a clip that cannot be written as MP4 the `excerpt` alone is sent, and why is said."""
    import av

    if not isinstance(media, Clip):
        return PackedMedia({0: _png(media)})
    stills = {k: _png(media.frames[k]) for k in excerpted(media)}
    try:
        video = video_bytes(media)
    except (ValueError, OSError, av.FFmpegError) as error:
        logger.warning("a clip is shown by %d of its frames, because it cannot be written: %s", len(stills), error)
        return PackedMedia(dict(enumerate(stills.values())), len(stills), media.fps * len(stills) / len(media.frames))
    return PackedMedia(stills, len(media.frames), media.fps, video, media.audio, media.sample_rate)


def _png(picture: Image.Image) -> bytes:
    file = BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def _picture(png: bytes) -> Image.Image:
    picture = Image.open(BytesIO(png))
    picture.load()
    return picture
