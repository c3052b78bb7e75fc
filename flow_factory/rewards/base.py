"""The interface of a reward: its constructor, its call and its result."""

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
    """(n,). NaN or None is a missing score: it is masked and counted, and never used as a number."""
    extra_info: dict[str, Any] | None = None
    """Any mapping; the entry "error" says why scores are missing."""


class BaseRewardModel(ABC):
    """Base of pointwise and groupwise rewards. Subclass one of those two."""

    required_fields: Sequence[str] | str | None = None
    """The required inputs: "prompt", "image" and "video" (both: either of them), "audio", conditions, columns of the data set.
    Without it the signature of `__call__` decides: one of the media that it names, and the columns without a default."""
    use_tensor_inputs: bool = False
    """Media as float tensors in [0, 1], (C, H, W) an image and (T, C, H, W) a video, on `self.device`; otherwise as PIL images."""
    extra_keys: ClassVar[tuple[str, ...] | None] = None
    """Keys of the YAML entry besides the common ones, in `config.extra_kwargs`; None accepts any."""
    loads_weights: ClassVar[bool] = False
    """Whether the constructor loads a model. `--check` constructs the other rewards only."""
    no_gradient: ClassVar[str | None] = "its class has no `differentiable`"
    """Why its scores have no gradient, which `trainer_type: draft` learns from; None: they have, by `differentiable`."""
    changes_inputs: ClassVar[bool] = True
    """Whether it may change its inputs. It then gets copies; a class with False gets the original images."""

    def __init__(self, config: RewardArguments, accelerator: Accelerator):
        self.config = config
        self.accelerator = accelerator
        self.device = accelerator.device if config.device == torch.device("cuda") else config.device
        self.dtype = config.dtype
        self.model: Any = None
        """For a subclass: what `to` moves."""

    @classmethod  # noqa: B027 (most read nothing)
    def require_files(cls, config: RewardArguments, now: bool) -> None:
        """Looks for the files that a constructor with `loads_weights` will read, without reading them. A start and `--check` call it first.

        Args:
            now: whether files on the hub must be cached or reachable.

        Raises:
            UserError: it is not there, or damaged.
        """

    @classmethod
    def row_check(cls, config: RewardArguments) -> Callable[[Row], None] | None:
        """A check of each row of the data set, for requirements that no list of fields can express; it raises `UserError`."""
        return None

    def to(self, device: torch.device | str) -> "BaseRewardModel":
        """Moves `self.model` to a device, and later also the media that are passed as tensors."""
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

        Called by keyword. A subclass names the inputs and columns that it uses.

        Args:
            prompt: n texts.
            image: n PIL images, or n tensors (see `use_tensor_inputs`); absent when the model makes videos.
            video: n lists of frames, or n tensors; absent when the model makes images.
            audio: n float32 arrays (channels, samples) in [-1, 1], or n tensors; absent when the model makes no sound.
            audio_sample_rate: n integers, in Hz; with `audio`.
            condition_images: n lists of images; with `use_tensor_inputs` a tensor (N, C, H, W) each, if the sizes are equal.
            condition_videos: likewise, n lists of videos.
            columns: lists of n values, one for each other column of the data set; None if a row lacks it, absent if all do.
        """


class PointwiseRewardModel(BaseRewardModel):
    """The score of a sample depends on that sample alone; called with up to `config.batch_size` samples of any rows."""


class GroupwiseRewardModel(BaseRewardModel):
    """The score of a sample depends on its group; called with one whole group, the samples of one row."""


def groupwise(function: Reward) -> Reward:
    """Marks a function as a reward that is called with one whole group, like `GroupwiseRewardModel`; returns the function."""
    function.groupwise = True  # type: ignore[attr-defined]
    return function
