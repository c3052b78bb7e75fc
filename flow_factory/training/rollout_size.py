"""`train.rollout_batch_size: auto`: the number of micro-batches of a group that one call can draw without changing a bit."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from flow_factory.core.groups import cut
from flow_factory.types import Clip, Rollout

Draw = Callable[[Sequence[int]], Rollout]
"""Members of a group -> their samples, drawn in one call."""


def most_alike(draw: Draw, size: int, most: int, agree: Callable[[bool], bool], steps_down: bool) -> int:
    """The largest number of micro-batches whose samples are the same when they are drawn together and one by one.

    Args:
        size: the number of samples of a micro-batch.
        most: the number of micro-batches of a group. Only its divisors are tried.
        agree: returns whether its argument is true on all processes.
        steps_down: whether to try a smaller number if memory does not suffice. It must be False with collective forwards.
    """
    if most == 1:
        return 1
    alone = [draw(range(k * size, (k + 1) * size)) for k in range(most)]
    for n in (n for n in range(most, 1, -1) if most % n == 0):
        try:
            same = all(map(same_samples, alone, cut(draw(range(n * size)), size)))  # the others have the same shapes
        except torch.OutOfMemoryError:
            if not steps_down:
                raise
            same = False
        if agree(same):
            return n
    return 1


def same_samples(one: Rollout, other: Rollout) -> bool:
    """Whether states, log-probabilities and media are equal to the bit."""
    return all(map(torch.equal, _tensors(one), _tensors(other))) and [*map(_bytes, one.media)] == [*map(_bytes, other.media)]


def _tensors(rollout: Rollout) -> list[Tensor]:
    path = [x for step in rollout.steps for x in (step.x, step.x1, step.logp.nan_to_num())]
    return path if rollout.x0 is None else [*path, rollout.x0]


def _bytes(media: Any) -> list[bytes]:
    """The bytes of an image, or of a clip's frames and sound."""
    if not isinstance(media, Clip):
        return [media.tobytes()]
    return [frame.tobytes() for frame in media.frames] + ([] if media.audio is None else [media.audio.tobytes()])
