"""How well a picture compresses: the rewards of DDPO (arXiv 2305.13301) that need no model."""

import io
from typing import ClassVar

import torch
from PIL import Image

from flow_factory.rewards.base import PointwiseRewardModel, RewardModelOutput
from flow_factory.rewards.media import fold, unfold


def kilobytes(image: Image.Image) -> float:
    """Size of the picture as JPEG of quality 95, in units of 1000 bytes."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format="JPEG", quality=95)
    return buffer.tell() / 1000


class JpegCompressibility(PointwiseRewardModel):
    """-kB / 500 as JPEG of quality 95, kB being 1000 bytes. A video's is the mean of its frames."""

    required_fields = ("image", "video")
    extra_keys = ()
    changes_inputs = False
    no_gradient = "its score is the size of a file"
    sign: ClassVar[int] = -1

    def __call__(self, prompt: list[str], image: list | None = None, video: list | None = None) -> RewardModelOutput:
        pictures, counts = unfold(image, video)
        return RewardModelOutput(fold(torch.tensor([self.sign * kilobytes(p) / 500 for p in pictures]), counts))


class JpegIncompressibility(JpegCompressibility):
    """kB / 500 as JPEG of quality 95."""

    sign = 1
