"""What crosses a module: plain records, no logic; free of torch at import, so that a data set can be checked in a moment."""

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
    """Every other column of the line, as read; rewards get them by name."""
    images: Sequence[str] = ()
    """Files of the condition images, in the line's order."""
    videos: Sequence[str] = ()
    """Files of the condition videos."""
    source: str = ""
    """`file:line`, for messages."""
    shows: str | None = None
    """`demonstration` or `preference`, of a line of the public schema_version 2."""
    inside: bool = False
    """Whether files stand inside the data set, and are written to where their names say when these are asked for."""
    dataset: str = ""
    """The name of its data set (`data.datasets`); "" where that has none."""


@dataclass(frozen=True)
class Clip:
    """A video, maybe with sound."""

    frames: Sequence[Any]
    """PIL images of one size."""
    fps: float
    """Frames per second."""
    audio: Any = None
    """(channels, samples) float32 array in [-1, 1]."""
    sample_rate: int | None = None
    """Of the audio, in Hz."""


@dataclass
class Step:
    """One transition x -> x1 of n samples. `t` is the model's clock, `s` and `s1` are noise levels in [0, 1]."""

    index: int
    t: Tensor
    s: Tensor
    s1: Tensor
    ceiling: Tensor
    """The schedule's second noise level: stands in for s where a kernel divides by 1 - s and s is (nearly) 1."""
    x: Tensor
    x1: Tensor
    logp: Tensor
    """(n,) float32 log-probability of x1, mean over the latent's dimensions; NaN of an ODE step, which has none."""
    dtype: Any
    """The dtype in which the model saw x, where x is stored in a narrower one."""
    mean: Tensor | None = None
    """Of the transition, float32, where the algorithm asks for it."""


@dataclass
class Rollout:
    """n samples of one data row, in the order of their ids: a micro-batch."""

    row: Row
    cond: Cond
    steps: list[Step]
    """The transitions that are trained on."""
    media: Sequence[Any]
    """One PIL image or `Clip` a sample."""
    group: int
    """The group's place in the epoch, over all processes."""
    epoch: int = 0
    ids: tuple[int, ...] = ()
    """The samples' numbers in the epoch, over all processes: the keys of their noise."""
    x0: Tensor | None = None
    """(n, ...) final states, for algorithms that learn on the forward process."""
    schedule: tuple[Tensor, Tensor] | None = None
    """Times (T,) and noise levels (T + 1,) of the rollout's schedule, on the CPU; beside `x0`, and where the algorithm asks for it."""
    memo: Any = None
    """What the pipeline computed from `cond` alone, see `condition_memo.ConditionMemo`."""
    frozen: dict[int, dict[str, Tensor]] = field(default_factory=lambda: defaultdict(dict))
    """Velocities under kept weights, by the number of the training point and the weights' name."""
    peers: dict[int, Any] = field(default_factory=dict)
    """What `Algorithm.survey` said of each training point."""
    rewards: Tensor = field(init=False)
    """(n, R) float32; NaN where a score is missing. Filled in by the trainer, as is `advantage`."""
    advantage: Tensor = field(init=False)
    """(n,) float32."""


@dataclass
class Point:
    """One forward and backward: where to ask the velocity, and what the loss needs beside it."""

    x: Tensor
    """State (n, ...)."""
    t: Tensor
    """The model's clock, 0-dim, or (n,) for a time a sample; `s`: the noise level, alike."""
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
    frozen: dict[str, Tensor] = field(default_factory=dict)
    """Velocities here under kept weights, by name."""
    peers: Any = None
    """What `Algorithm.survey` said; None where this micro-batch is all that counts."""


@dataclass(frozen=True)
class Sample:
    """What trackers and grids show."""

    prompt: str
    media: Any
    rewards: dict[str, float]


class Velocity(Protocol):
    """The velocity at a point under named weights: "policy" (with gradient) or a kept copy such as "ref" (without)."""

    def __call__(self, point: Point, weights: str = "policy") -> Tensor: ...
