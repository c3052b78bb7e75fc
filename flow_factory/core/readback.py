"""Copies decoded images to main memory, and converts them to PIL, while the device draws the next samples."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, overload

import torch
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor

PROCESSORS = ("image_processor", "video_processor")
"""Attributes of diffusers' pipelines for the image processor; a processor of an encoder from another library may be there too."""


class Deferred(Sequence[Any]):
    """A list that is made when it is first read."""

    def __init__(self, make: Callable[[], Sequence[Any]]):
        self._make: Callable[[], Sequence[Any]] | None = make
        self._made: list[Any] = []

    def _list(self) -> list[Any]:
        if self._make is not None:
            self._made, self._make = list(self._make()), None
        return self._made

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: Any) -> Any:
        return self._list()[index]

    def __len__(self) -> int:
        return len(self._list())


class Readback:
    """Replaces an image processor: pixels are copied to main memory at once, and the conversion happens when the images are first read.

    Normalising and rounding are single operations, so they give the same bits there as on the device.
    """

    def __init__(self, bare: Any):
        self.bare = bare

    def __getattr__(self, name: str) -> Any:
        if name == "bare":  # missing while copy or pickle builds the object
            raise AttributeError(name)
        return getattr(self.bare, name)

    def postprocess(self, image: Any, output_type: str = "pil", **options: Any) -> Any:
        return _later(self.bare.postprocess, image, output_type, options)

    def postprocess_video(self, video: Any, output_type: str = "np", **options: Any) -> Any:
        return _later(self.bare.postprocess_video, video, output_type, options)


def _later(make: Callable[..., Any], pixels: Any, output_type: str, options: dict[str, Any]) -> Any:
    if output_type != "pil" or not isinstance(pixels, Tensor):
        return make(pixels, output_type=output_type, **options)
    arrived = leaving(pixels)
    return Deferred(lambda: make(arrived(), output_type=output_type, **options))


def leaving(x: Tensor) -> Callable[[], Tensor]:
    """Starts a copy to main memory. The returned function waits for this copy only, not for later work of the device."""
    if not x.is_cuda:
        return lambda: x
    here = torch.empty_like(x, device="cpu", pin_memory=True).copy_(x, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def arrived() -> Tensor:
        copied.synchronize()
        return here

    return arrived


@contextmanager
def reading_back(pipe: Any) -> Iterator[None]:
    """Inside this context the pipeline's images are `Deferred`."""
    bare = {name: found for name in PROCESSORS if isinstance(found := getattr(pipe, name, None), VaeImageProcessor)}
    try:
        for name, processor in bare.items():
            setattr(pipe, name, Readback(processor))
        yield
    finally:
        for name, processor in bare.items():
            setattr(pipe, name, processor)
