"""The denoising steps of a rollout that are stochastic or trained on: a function of seed, epoch and group, the same on every process.

Candidates are step indices in ascending order, by default 0 to n - 2: the last step is left deterministic. The choice is never empty.
`group` is the global id of a prompt group; without it there is one choice per epoch. A random subset is `randomness.choose_steps`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from flow_factory.core.randomness import choose_steps, generator

if TYPE_CHECKING:
    from flow_factory.config import SchedulerConfig


def random_window(candidates: Sequence[int], size: int | None, seed: int, epoch: int, *group: int) -> tuple[int, ...]:
    """`size` consecutive candidates, every place equally likely (Flow-GRPO-Fast, arXiv 2505.05470); None: all of them.

    The authors' default is a window of 3 in the first half of the schedule.

    Raises:
        ValueError: size is not in 1..len(candidates).
    """
    if size is None:
        return tuple(candidates)
    if not 1 <= size <= len(candidates):
        raise ValueError(f"a window of {size} steps does not fit the {len(candidates)} candidate steps {list(candidates)}")
    start = int(torch.randint(len(candidates) - size + 1, (), generator=generator(seed, "window", epoch, *group)))
    return tuple(candidates[start : start + size])


def random_fraction(candidates: Sequence[int], fraction: float, seed: int, epoch: int, *group: int) -> tuple[int, ...]:
    """int(fraction * number) of the candidates, ascending. DanceGRPO (arXiv 2505.07818) trains on .6 of its stochastic steps.

    Raises:
        ValueError: that is none of them, or more than there are.
    """
    count = int(fraction * len(candidates) + 1e-9)
    if not 1 <= count <= len(candidates):
        raise ValueError(f"a fraction of {fraction} of the {len(candidates)} candidate steps is {count} of them, not from 1 to all")
    return choose_steps(candidates, count, seed, epoch, *group)


def stratified(candidates: Sequence[int], size: int | None, seed: int, epoch: int, group: int) -> tuple[int, ...]:
    """`size` of the candidates for the group at this place of the epoch, ascending (Flash-GRPO, arXiv 2605.15980); None: all of them.

    Each epoch has a new permutation of the candidates. The groups take steps from it in turn, so the uses of two candidates in an epoch
    differ by at most one. The authors draw each group's step apart from the others.

    Raises:
        ValueError: size is not in 1..len(candidates).
    """
    if size is None:
        return tuple(candidates)
    many = len(candidates)
    if not 1 <= size <= many:
        raise ValueError(f"cannot deal {size} of the {many} candidate steps {list(candidates)} to a group")
    order = torch.randperm(many, generator=generator(seed, "strata", epoch)).tolist()
    return tuple(sorted(candidates[order[(group * size + k) % many]] for k in range(size)))


@dataclass(frozen=True)
class SlidingWindow:
    """MixGRPO (arXiv 2507.21802): the stochastic steps are a window that moves from noise to data during training.

    In the paper every window is full, and the last one ends with the last candidate. With `shrink`, as in the authors' code, the window
    moves on until one step is left in it. Their empty window after that, which trains nothing, is left out in both cases.
    """

    size: int = 4
    schedule: Literal["progressive", "decay", "exp_decay", "random"] = "progressive"
    """The epochs at each place: `epochs`; linearly fewer; exponentially fewer from `threshold` on; or a random place every epoch."""
    epochs: int = 25
    stride: int = 1
    """Steps from one place to the next. The authors' non-overlapping windows have a stride of `size`."""
    roll_back: bool = True
    """Whether the window returns to the first place after the last. If not, it stays at the last."""
    shrink: bool = False
    fewest: int | None = None
    """Epochs at the end of "decay"; None: a quarter of `epochs`."""
    rate: float = 0.1
    threshold: int = 13

    def places(self, steps: int) -> list[int]:
        """Where the window starts, in the order of training, among this many candidates."""
        full = max(steps - self.size, 0)
        starts = list(range(0, (steps if self.shrink else full + 1), self.stride))
        return starts if self.shrink or starts[-1] == full else [*starts, full]

    def stay(self, start: int, steps: int) -> int:
        """Epochs at this place, at least 1."""
        if self.schedule == "decay":
            fewest = max(1, self.epochs // 4 if self.fewest is None else self.fewest)
            p = start / steps
            return max(fewest, int(self.epochs * (1 - p) + fewest * p))
        if self.schedule == "exp_decay":
            return math.ceil(self.epochs * math.exp(-self.rate * max(0, start - self.threshold)))
        return self.epochs

    def at(self, candidates: Sequence[int], seed: int, epoch: int, *group: int) -> tuple[int, ...]:
        """The window of this epoch. Only "random" uses `seed` and `group`.

        Raises:
            ValueError: no candidates, an unknown schedule, or a size, stride or epochs below 1.
        """
        if not candidates or min(self.size, self.stride, self.epochs) < 1:
            raise ValueError(
                f"a sliding window wants candidate steps, size, stride and epochs of at least 1, got {list(candidates)}, {self}"
            )
        if self.schedule == "random":
            return random_window(candidates, min(self.size, len(candidates)), seed, epoch, *group)
        if self.schedule not in ("progressive", "decay", "exp_decay"):
            raise ValueError(f"no window schedule {self.schedule!r}; known: progressive, decay, exp_decay, random")
        starts = [start for start in self.places(len(candidates)) for _ in range(self.stay(start, len(candidates)))]
        start = starts[epoch % len(starts) if self.roll_back else min(epoch, len(starts) - 1)]
        return tuple(candidates[start : start + self.size])


def select_steps(scheduler: "SchedulerConfig", candidates: Sequence[int], seed: int, epoch: int, group: int) -> tuple[int, ...]:
    """The steps that a group trains on by `scheduler.step_selection`; `group` is its place in the epoch.

    "random" and the sliding windows are the same for all groups of an epoch. The other methods choose for each group.
    """
    size = scheduler.num_sde_steps
    match scheduler.step_selection:
        case "window":
            return random_window(candidates, size, seed, epoch, group)
        case "branch":
            return stratified(candidates, 1, seed, epoch, group)
        case "stratified":
            return stratified(candidates, size, seed, epoch, group)
        case "sliding":
            window = SlidingWindow(
                size or len(candidates), scheduler.window_schedule, scheduler.window_epochs, scheduler.window_stride,
                scheduler.window_roll_back, scheduler.window_shrink,
            )  # fmt: skip
            return window.at(candidates, seed, epoch)
        case "fraction":
            return random_fraction(candidates, scheduler.sde_fraction, seed, epoch, group)
    return choose_steps(candidates, size, seed, epoch)
