"""The interface of a reward: what it is constructed with, called with, and returns."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from flow_factory.hparams import RewardArguments


@dataclass
class RewardModelOutput:
    """Scores of one call, in the order of its samples."""

    rewards: Sequence[float | None] | np.ndarray | Tensor
    """(n,). NaN or None is a missing score: masked and counted, never taken for a number."""
    extra_info: dict[str, Any] | None = None
    """Anything; the entry "error" says why scores are missing."""


class RewardModel(ABC):
    """What pointwise and groupwise rewards share. Subclass one of those two."""

    required_fields: tuple[str, ...] = ("prompt", "image")
    """What it cannot do without: "prompt", "image" and "video" (both: it takes either), conditions, columns of the data set."""
    use_tensor_inputs: bool = False
    """Media as float tensors in [0, 1], (C, H, W) an image and (T, C, H, W) a video, on `self.device`; otherwise as PIL images."""
    extra_keys: ClassVar[tuple[str, ...] | None] = None
    """The keys of the YAML entry that it takes beyond the common ones; None takes any, in `config.extra_kwargs`."""

    def __init__(self, config: RewardArguments, accelerator: Accelerator):
        self.config = config
        self.accelerator = accelerator
        self.device = accelerator.device if config.device == torch.device("cuda") else config.device
        self.dtype = config.dtype

    @abstractmethod
    def __call__(self, prompt: list[str], *args: Any, **columns: Any) -> RewardModelOutput:
        """Score n samples: `(prompt, image=None, video=None, condition_images=None, condition_videos=None, **columns)`.

        Called by keyword. A subclass leaves out what it does not use, and names the columns that it does.

        Args:
            prompt: n texts.
            image: n PIL images, or n tensors (see `use_tensor_inputs`); absent when the model makes videos.
            video: n lists of frames, or n tensors; absent when the model makes images.
            condition_images: n lists of images; a tensor (N, C, H, W) each where tensors are asked for and the sizes agree.
            condition_videos: likewise, n lists of videos.
            columns: lists of n values, one for each other column of the data set; None where a row lacks it, absent where all do.
        """


class PointwiseRewardModel(RewardModel):
    """A sample's score depends on that sample alone; called with up to `config.batch_size` samples of any rows."""


class GroupwiseRewardModel(RewardModel):
    """A sample's score depends on its group; called with one whole group, the samples of one row."""
