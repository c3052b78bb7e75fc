"""How pipelines take several samples of one row: a few ways, of which the right one is found by trying."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from flow_factory.models.failures import FAILURES, reason
from flow_factory.types import Cond

Media = Literal["listed", "single", "batch", "lists", "tensor"]
Prompts = Literal["each", "one", "alone"]
COUNTS = ("num_images_per_prompt", "num_videos_per_prompt")
"""Arguments of pipelines for the number of samples of one prompt."""
PROMPTS: Sequence[Prompts] = ("each", "one")
ALONE: Sequence[Prompts] = ("each", "alone")


@dataclass(frozen=True)
class CallForm:
    """How call arguments for n samples of one row are written."""

    media: Media = "listed"
    """Pictures: the row's list, once; the row's only picture, once; the picture or list of a sample, n times; its list, n times. Frames are
    a list, or a tensor (1, 3, frames, h, w) in [0, 1], (n, ...) for n texts."""
    prompts: Prompts = "each"
    """Texts: n times; once, with the number of samples; once, for one sample with one generator."""
    most: int | None = None
    """Samples that the pipeline takes in a call; None: any number."""
    videos: Sequence[str] = ()
    """Arguments that are videos."""

    def arguments(self, cond: Cond, n: int, known: Collection[str]) -> Cond:
        """
        Args:
            cond: texts; pictures and frames as lists of PIL images.
            known: the names of the pipeline's call arguments.
        """
        made = {name: self._value(value, n, name in self.videos) for name, value in cond.items()}
        if self.prompts == "one":
            made |= {name: n for name in COUNTS if name in known}
        return made

    def _value(self, value: Any, n: int, video: bool) -> Any:
        if isinstance(value, str):
            return [value] * n if self.prompts == "each" else value
        if not isinstance(value, list) or self.media == "listed":
            return value
        if self.media == "tensor" and video:
            return as_tensor(value)[None].expand(n if self.prompts == "each" else 1, -1, -1, -1, -1)
        one = value if video or len(value) > 1 or self.media == "lists" else value[0]
        return one if self.media == "single" else [one] * n


def as_tensor(frames: Sequence[Image.Image]) -> Tensor:
    """PIL images as (3, frames, h, w) in [0, 1]."""
    return torch.stack([torch.from_numpy(np.array(frame.convert("RGB"))) for frame in frames]).permute(3, 0, 1, 2) / 255


def forms(cond: Cond, videos: Sequence[str], known: Collection[str]) -> Iterator[CallForm]:
    """Those to try, in this order."""
    lists = [name for name, value in cond.items() if isinstance(value, list)]
    several = any(len(cond[name]) > 1 for name in lists if name not in videos)
    media: list[Media] = ["listed"] if not lists else ["listed", "batch"] if several else ["listed", "single", "batch", "lists"]
    media += ["tensor"] * bool(videos)
    for prompts in PROMPTS:
        if prompts == "each" or any(name in known for name in COUNTS):
            yield from (CallForm(kind, prompts, videos=videos) for kind in media)
    for prompts in ALONE:
        yield from (CallForm(kind, prompts, most=1, videos=videos) for kind in media)


def found(candidates: Iterator[CallForm], attempt: Callable[[CallForm], Any]) -> tuple[CallForm, Any]:
    """The first form with which an attempt does not fail, and what came of it.

    Raises:
        ValueError: there is none; the message has why the first failed.
    """
    first: BaseException | None = None
    for form in candidates:
        try:
            return form, attempt(form)
        except torch.OutOfMemoryError:
            raise
        except (*FAILURES, AssertionError) as failure:
            first = first or failure
    assert first is not None  # there is one candidate at least
    raise ValueError(reason(first)) from first
