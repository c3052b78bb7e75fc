"""Plain records that modules exchange. Imports no torch, so that a data set can be checked quickly."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

Cond = dict[str, Any]
"""Keyword arguments of the pipeline's `__call__` that come from one data row."""

Metrics = dict[str, "Tensor"]
"""Scalars or per-sample values (n,), detached; averaged over the epoch by name."""


@dataclass(frozen=True)
class Row:
    """One line of the data set."""

    id: int
    """Index among the training rows of all data sets in order, or among the test rows of one data set; from 0."""
    prompt: str
    negative_prompt: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    """All other columns of the line, as read. Rewards get them by name."""
    images: Sequence[str] = ()
    """Files of the condition images, in the line's order."""
    videos: Sequence[str] = ()
    """Files of the condition videos."""
    source: str = ""
    """`file:line`, for messages."""
    shows: str | None = None
    """`demonstration` or `preference` for a line of the public schema_version 2."""
    inside: bool = False
    """Whether the files are stored inside the data set. They are written to their paths at first use."""
    dataset: str = ""
    """The name of its data set in `data.datasets`; "" without one."""
    image_inputs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Argument of the pipeline's `__call__` that `data.columns` names, such as `mask_image` -> files of images and masks."""
    video_inputs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Argument of the call -> files of videos."""
    audio_inputs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Argument of the call -> files of sounds."""


@dataclass(frozen=True)
class Clip:
    """A video, optionally with sound."""

    frames: Sequence[Any]
    """PIL images of one size."""
    fps: float
    """Frames per second."""
    audio: Any = None
    """(channels, samples) float32 array in [-1, 1]."""
    sample_rate: int | None = None
    """Sample rate of the audio, in Hz."""


@dataclass(frozen=True)
class Sound:
    """A sound."""

    samples: Any
    """(channels, samples) float32 array in [-1, 1]."""
    sample_rate: int
    """In Hz."""


@dataclass
class Step:
    """One transition x -> x1 of n samples. `t` is the model's timestep, `s` and `s1` are noise levels in [0, 1]."""

    index: int
    t: Tensor
    s: Tensor
    s1: Tensor
    ceiling: Tensor
    """The schedule's second noise level; a kernel that divides by 1 - s uses it in place of s near 1."""
    x: Tensor
    x1: Tensor
    logp: Tensor
    """(n,) float32 log-probability of x1, mean over the latent's dimensions; NaN for an ODE step."""
    dtype: Any
    """The dtype in which the model saw x, if x is stored in a narrower one."""
    mean: Tensor | None = None
    """Mean of the transition, float32, if the algorithm needs it."""


@dataclass
class Rollout:
    """n samples of one data row, in the order of their ids: a micro-batch."""

    row: Row
    cond: Cond
    steps: list[Step]
    """The stored transitions, for training."""
    media: Sequence[Any]
    """One PIL image or `Clip` per sample."""
    group: int
    """The index of the group in the epoch, over all processes."""
    epoch: int = 0
    ids: tuple[int, ...] = ()
    """The indices of the samples in the epoch, over all processes. They are the keys of the noise."""
    x0: Tensor | None = None
    """(n, ...) final states, for algorithms that learn on the forward process."""
    schedule: tuple[Tensor, Tensor] | None = None
    """Times (T,) and noise levels (T + 1,) of the rollout's schedule, on the CPU; with `x0`, or if the algorithm needs it."""
    memo: Any = None
    """Results of the pipeline that depend only on `cond`, see `condition_memo.ConditionMemo`."""
    frozen: dict[int, dict[str, Tensor]] = field(default_factory=lambda: defaultdict(dict))
    """Index of the training point -> name of kept weights -> velocity."""
    peers: dict[int, Any] = field(default_factory=dict)
    """Results of `Algorithm.precompute` for each training point."""
    slope: Tensor | None = None
    """(n, ...) float32 gradient of each sample's loss in `x0`, for algorithms that learn through the sampler."""
    kl_weight: Tensor | None = None
    """(n,) weight of each sample's distance to the reference, of mean 1 over an epoch, on the CPU; None stands for 1."""
    rewards: Tensor = field(init=False)
    """(n, R) float32; NaN where a score is missing. The trainer sets it and `advantage`."""
    advantage: Tensor = field(init=False)
    """(n,) float32."""

    @property
    def unheld(self) -> bool:
        """Whether no sample has a KL term, so that the reference is not needed."""
        return self.kl_weight is not None and not bool(self.kl_weight.any())


@dataclass
class Point:
    """A training point: the inputs of one forward and backward, and the values that the loss needs."""

    x: Tensor
    """State (n, ...)."""
    t: Tensor
    """The model's timestep, 0-dim, or (n,) for a time per sample; `s`: the noise level, likewise."""
    s: Tensor
    cond: Cond
    advantage: Tensor
    step: Step | None = None
    """Set for a point on a rollout's path."""
    x0: Tensor | None = None
    """Set for a point on the forward process: x = (1 - s) x0 + s noise; both float32."""
    noise: Tensor | None = None
    memo: Any = None
    """The rollout's."""
    schedule: tuple[Tensor, Tensor] | None = None
    """The rollout's."""
    tau: Tensor | None = None
    """The noise level at which the policy's sample from this state is judged, 0-dim or (n,)."""
    frozen: dict[str, Tensor] = field(default_factory=dict)
    """Name of kept weights -> their velocity here."""
    peers: Any = None
    """Result of `Algorithm.precompute`; None if the loss depends on this micro-batch alone."""
    slope: Tensor | None = None
    """(n, ...) gradient of each sample's loss in the next state of the sampler."""
    factor: Tensor | None = None
    """A zero leaf in the loss. Its gradient is the factor by which the loss was multiplied before the backward."""
    dataset: str = ""
    """The name of the row's data set."""
    kl_weight: Tensor | None = None
    """The rollout's."""
    unheld: bool = False
    """The rollout's."""


@dataclass(frozen=True)
class Sample:
    """A sample with its scores, for trackers and grids."""

    prompt: str
    media: Any
    rewards: dict[str, float]
    advantage: float | None = None
    """The advantage of a training sample."""
    group: int | None = None
    """The index of its group in the epoch."""
    conditions: Sequence[Any] = ()
    """Small pictures of the row's condition files, shown beside it."""
    row: str | None = None
    """Of an evaluation: which test row it is of. The same has the same content and the same noise."""


class Velocity(Protocol):
    """The velocity at a point under named weights: with gradient for the network in its turn ("policy" if there is only one), without for
    other networks and kept copies such as "ref". `guidance` overrides `Algorithm.guidance`.
    """

    def __call__(self, point: Point, weights: str = "policy", guidance: float | None = None) -> Tensor: ...
