"""`train.rollout_batch_size: auto`: how many micro-batches of a group may be drawn in one call without changing a bit."""

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
        size: samples of a micro-batch.
        most: micro-batches that there are; only what divides them is tried.
        agree: whether it is true on all processes.
        steps_down: whether a smaller number is tried where the device's memory does not suffice; not where all processes share a forward.
    """
    if most == 1:
        return 1
    alone = [draw(range(k * size, (k + 1) * size)) for k in range(most)]
    for n in (n for n in range(most, 1, -1) if most % n == 0):
        try:
            same = all(map(same_samples, alone, cut(draw(range(n * size)), size)))  # the first n; the others come in the same shapes
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
    """Of a picture, or a clip's frames and sound."""
    if not isinstance(media, Clip):
        return [media.tobytes()]
    return [frame.tobytes() for frame in media.frames] + ([] if media.audio is None else [media.audio.tobytes()])
