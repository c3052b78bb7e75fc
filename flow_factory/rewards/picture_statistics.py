"""Statistics of a picture that move when a reward is exploited: to be watched (`weight: 0`, `monitor:`), and no measure of quality."""

import torch
from torch import Tensor

from flow_factory.rewards.base import PointwiseRewardModel, RewardModelOutput
from flow_factory.rewards.media import scored, to_tensor

FINE = 0.25
"""Cycles per pixel above which a frequency is high: half of the highest that a picture can have along its rows."""


def saturation(pixels: Tensor) -> Tensor:
    """() of (3, h, w) in [0, 1]: mean of (max - min) / max over a pixel's colours, HSV's saturation; 0 is grey, 1 are pure colours."""
    most, least = pixels.amax(0), pixels.amin(0)
    return torch.where(most > 0, (most - least) / most.clamp(min=1e-6), 0.0).mean()


def high_frequency(pixels: Tensor) -> Tensor:
    """() of (3, h, w) in [0, 1]: share of the energy of the brightness, less its mean, above `FINE`; of white noise about 0.8.

    A Hann window keeps the jump from one edge to the opposite one out of it. A picture of one colour has 0.
    """
    grey = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64, device=pixels.device) @ pixels.flatten(1).double()
    grey = (grey - grey.mean()).reshape(pixels.shape[1:])
    height, width = grey.shape
    window = [torch.hann_window(n, periodic=False, dtype=torch.float64, device=grey.device) for n in (height, width)]
    energy = torch.fft.fft2(grey * window[0][:, None] * window[1]).abs().square()
    away = torch.fft.fftfreq(height, dtype=torch.float64)[:, None].square() + torch.fft.fftfreq(width, dtype=torch.float64).square()
    fine = energy[away.sqrt().to(energy.device) > FINE].sum()
    return torch.where(energy.sum() > 1e-9, fine / energy.sum().clamp(min=1e-9), 0.0).float()


class Saturation(PointwiseRewardModel):
    """Mean saturation of the colours, in [0, 1]. A video's is the mean of its frames."""

    required_fields = ("image", "video")
    extra_keys = ()
    changes_inputs = False
    no_gradient = "it is meant to be watched only"

    def measure(self, pixels: Tensor) -> Tensor:
        """() of one picture (3, h, w) in [0, 1]."""
        return saturation(pixels)

    def __call__(self, prompt: list[str], image: list | None = None, video: list | None = None) -> RewardModelOutput:
        def measured(_: list[str], pictures: list) -> Tensor:
            return torch.stack([self.measure(to_tensor(picture, torch.device("cpu"))) for picture in pictures])

        return RewardModelOutput(scored(measured, prompt, image, video, self.config.batch_size))


class HighFrequency(Saturation):
    """Share of the brightness's energy in fine detail, in [0, 1]: high in pictures of noise, grids and over-sharpened edges."""

    def measure(self, pixels: Tensor) -> Tensor:
        return high_frequency(pixels)
