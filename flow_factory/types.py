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
    """Position among the run's training rows, those of all data sets one after the other, or among one data set's test rows; from 0."""
    prompt: str
    negative_prompt: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    """All other columns of the line, as read; rewards get them by name."""
    images: Sequence[str] = ()
    """Files of the condition images, in the line's order."""
    videos: Sequence[str] = ()
    """Files of the condition videos."""
    image_inputs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Files of pictures and masks, by the argument of the pipeline's `__call__` that `data.columns` names, such as `mask_image`."""
    video_inputs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Files of videos, likewise."""
    audio_inputs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Files of sounds, likewise."""
    source: str = ""
    """`file:line`, for messages."""
    shows: str | None = None
    """`demonstration` or `preference`, of a line of the public schema_version 2."""
    inside: bool = False
    """Whether the files are stored inside the data set; they are written to their paths when first needed."""
    dataset: str = ""
    """The name of its data set (`data.datasets`); "" where that has none."""


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
    """The group's place in the epoch, over all processes."""
    epoch: int = 0
    ids: tuple[int, ...] = ()
    """The samples' numbers in the epoch, over all processes: the keys of their noise."""
    x0: Tensor | None = None
    """(n, ...) final states, for algorithms that learn on the forward process."""
    schedule: tuple[Tensor, Tensor] | None = None
    """Times (T,) and noise levels (T + 1,) of the rollout's schedule, on the CPU; with `x0`, or if the algorithm needs it."""
    memo: Any = None
    """Results that the pipeline computed from `cond` alone, see `condition_memo.ConditionMemo`."""
    frozen: dict[int, dict[str, Tensor]] = field(default_factory=lambda: defaultdict(dict))
    """Velocities under kept weights, by the number of the training point and the weights' name."""
    peers: dict[int, Any] = field(default_factory=dict)
    """Results of `Algorithm.survey` for each training point."""
    slope: Tensor | None = None
    """(n, ...) float32 gradient of each sample's loss in `x0`, for algorithms that learn through the sampler."""
    kl_weight: Tensor | None = None
    """(n,) weight of each sample's distance to the reference, 1 on average over an epoch, on the CPU; None: 1."""
    rewards: Tensor = field(init=False)
    """(n, R) float32; NaN where a score is missing. Filled in by the trainer, as is `advantage`."""
    advantage: Tensor = field(init=False)
    """(n,) float32."""


@dataclass
class Point:
    """A training point, one forward and backward: where to compute the velocity, and what else the loss needs."""

    x: Tensor
    """State (n, ...)."""
    t: Tensor
    """The model's timestep, 0-dim, or (n,) for a time per sample; `s`: the noise level, likewise."""
    s: Tensor
    cond: Cond
    advantage: Tensor
    step: Step | None = None
    """On a rollout's path."""
    x0: Tensor | None = None
    """On the forward process: x = (1 - s) x0 + s noise; both float32."""
    noise: Tensor | None = None
    memo: Any = None
    """The rollout's."""
    schedule: tuple[Tensor, Tensor] | None = None
    """The rollout's."""
    tau: Tensor | None = None
    """Noise level at which what the policy makes of it is judged, 0-dim or (n,)."""
    frozen: dict[str, Tensor] = field(default_factory=dict)
    """Velocities here under kept weights, by name."""
    peers: Any = None
    """Result of `Algorithm.survey`; None if the loss depends on this micro-batch alone."""
    slope: Tensor | None = None
    """(n, ...) gradient of each sample's loss in the state that the sampler's step from here leads to."""
    factor: Tensor | None = None
    """A leaf of 0 in the loss: its gradient is the factor with which the loss was multiplied before its backward."""
    dataset: str = ""
    """The name of its row's data set."""
    kl_weight: Tensor | None = None
    """The rollout's."""
    unheld: bool = False
    """Whether all of that is 0: then nothing asks for the reference."""


@dataclass(frozen=True)
class Sample:
    """A sample with its scores, for trackers and grids."""

    prompt: str
    media: Any
    rewards: dict[str, float]
    advantage: float | None = None
    """Of a sample of a rollout that is trained on."""
    group: int | None = None
    """Its group's place in the epoch."""


class Velocity(Protocol):
    """The velocity at a point under named weights: of the network that is trained now ("policy", where it is the only one) with gradient,
    of others and of kept copies such as "ref" without. `guidance` is asked for where it is not that of `Algorithm.guidance`.
    """

    def __call__(self, point: Point, weights: str = "policy", guidance: float | None = None) -> Tensor: ...
