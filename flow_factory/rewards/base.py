"""The interface of a reward: what it is constructed with, called with, and returns."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from flow_factory.hparams import RewardArguments
from flow_factory.types import Row

Reward = TypeVar("Reward", bound=Callable[..., Any])


@dataclass
class RewardModelOutput:
    """Scores of one call, in the order of its samples."""

    rewards: Sequence[float | None] | np.ndarray | Tensor
    """(n,). NaN or None is a missing score: masked and counted, never taken for a number."""
    extra_info: dict[str, Any] | None = None
    """Anything; the entry "error" says why scores are missing."""


class BaseRewardModel(ABC):
    """What pointwise and groupwise rewards share. Subclass one of those two."""

    required_fields: Sequence[str] | str | None = None
    """What it cannot do without: "prompt", "image" and "video" (both: it takes either), "audio", conditions, columns of the data set.
    Where a class does not say it, `__call__` does: one of the media that it names, and the columns that have no default."""
    use_tensor_inputs: bool = False
    """Media as float tensors in [0, 1], (C, H, W) an image and (T, C, H, W) a video, on `self.device`; otherwise as PIL images."""
    extra_keys: ClassVar[tuple[str, ...] | None] = None
    """The keys of the YAML entry that it takes beyond the common ones; None takes any, in `config.extra_kwargs`."""
    loads_weights: ClassVar[bool] = False
    """Whether its constructor reads a model: `--check`, which constructs the others, then leaves it out."""
    no_gradient: ClassVar[str | None] = "its class has no `differentiable`"
    """Why its scores have no gradient, which `trainer_type: draft` learns from; None: they have, by `differentiable`."""
    changes_inputs: ClassVar[bool] = True
    """Whether it may change what it is given. It gets copies; a class that says False gets the pictures themselves."""

    def __init__(self, config: RewardArguments, accelerator: Accelerator):
        self.config = config
        self.accelerator = accelerator
        self.device = accelerator.device if config.device == torch.device("cuda") else config.device
        self.dtype = config.dtype
        self.model: Any = None
        """For a subclass: what `to` moves."""

    @classmethod  # noqa: B027 (most read nothing)
    def require_files(cls, config: RewardArguments, now: bool) -> None:
        """Asks, without reading it, for what a constructor that `loads_weights` will read: a start and `--check` do so first of all.

        Args:
            now: whether what the hub has must be there or within reach.

        Raises:
            UserError: it is not there, or damaged.
        """

    @classmethod
    def row_check(cls, config: RewardArguments) -> Callable[[Row], None] | None:
        """Of the data set's rows, when they are read, what no list of fields can say: raises `UserError` for a row that lacks it."""
        return None

    def to(self, device: torch.device | str) -> "BaseRewardModel":
        """Moves `self.model`, and media that it is given as tensors, to a device."""
        self.device = torch.device(device)
        if self.model is not None:
            self.model.to(self.device)
        return self

    def differentiable(self, prompt: list[str], pixels: Tensor) -> Tensor:
        """Scores (n,) of n texts and pictures (n, 3, h, w) in [0, 1], with gradient; those of `__call__` but for rounding to 256 levels.

        A video's frames come as pictures, and their scores are averaged.
        """
        raise NotImplementedError(f"{type(self).__name__}: {self.no_gradient}")

    @abstractmethod
    def __call__(self, prompt: list[str], *args: Any, **columns: Any) -> RewardModelOutput:
        """Score n samples: `(prompt, image=None, video=None, audio=None, condition_images=None, condition_videos=None, **columns)`.

        Called by keyword. A subclass leaves out what it does not use, and names the columns that it does.

        Args:
            prompt: n texts.
            image: n PIL images, or n tensors (see `use_tensor_inputs`); absent when the model makes videos.
            video: n lists of frames, or n tensors; absent when the model makes images.
            audio: n float32 arrays (channels, samples) in [-1, 1], or n tensors; absent when the model makes no sound.
            audio_sample_rate: n whole numbers, in Hz; beside `audio`.
            condition_images: n lists of images; a tensor (N, C, H, W) each where tensors are asked for and the sizes agree.
            condition_videos: likewise, n lists of videos.
            columns: lists of n values, one for each other column of the data set; None where a row lacks it, absent where all do.
        """


class PointwiseRewardModel(BaseRewardModel):
    """A sample's score depends on that sample alone; called with up to `config.batch_size` samples of any rows."""


class GroupwiseRewardModel(BaseRewardModel):
    """A sample's score depends on its group; called with one whole group, the samples of one row."""


def groupwise(function: Reward) -> Reward:
    """Marks a function as a reward that is called with one whole group, as `GroupwiseRewardModel` is; returns it."""
    function.groupwise = True  # type: ignore[attr-defined]
    return function
