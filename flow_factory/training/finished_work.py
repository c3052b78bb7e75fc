"""The samples of an unfinished epoch on one process, and their conversion to tensors and JSON for saving."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from flow_factory.checkpoints.checkpoint import CheckpointError
from flow_factory.core.condition_memo import ConditionMemo
from flow_factory.data.packing import DTYPES, Packer, pack, rebuilt
from flow_factory.rewards.calls import Counts
from flow_factory.rewards.inputs import samples_of
from flow_factory.rewards.stream import StreamState
from flow_factory.types import Clip, Cond, Rollout, Row, Step
from flow_factory.utils.offload import to_cpu, to_device
from flow_factory.utils.tensor_file import NAMES

if TYPE_CHECKING:
    from flow_factory.training.rollout import RolloutCollector


@dataclass
class FinishedWork:
    """The finished part of an epoch on one process, in the order of the epoch."""

    rollouts: list[Rollout]
    """The finished micro-batches."""
    taken: int
    """The number of micro-batches for which scores were requested."""
    ids: list[int]
    """The ids of the samples for which this process has requested scores. They may be samples of other processes."""
    stream: StreamState
    counts: Counts
    together: int | None
    """The number of micro-batches that one call of the pipeline draws."""


class UnkeptError(Exception):
    """Samples of this kind cannot be saved."""


class Pool(Packer):
    """Tensors by their number."""

    def __init__(self) -> None:
        super().__init__(lambda picture: None)
        self.held: dict[str, Tensor] = {}

    def _tensor(self, tensor: Tensor) -> int:
        self.held[str(len(self.held))] = tensor
        return len(self.held) - 1


def packed(done: FinishedWork) -> tuple[dict[str, Tensor], str]:
    """The tensors on their devices, and JSON that describes them.

    Raises:
        UnkeptError: the samples or their conditions cannot be saved; the message has the reason.
    """
    last = {id(s): s for waiting in done.stream.waiting for s in waiting}
    places = {sample: k for k, sample in enumerate(last)}
    plain = {
        "rollouts": [_plain(rollout) for rollout in done.rollouts],
        "sources": {str(group): source_of(r.row, r.cond) for group, r in {r.group: r for r in done.rollouts}.items()},
        "taken": done.taken, "ids": done.ids, "together": done.together, "datasets": done.stream.sources,
        "found": [torch.cat(found) if found else None for found in done.stream.found],
        "waiting": [[places[id(s)] for s in waiting] for waiting in done.stream.waiting],
        "last": [[s.row.id, _plain_media(s.media)] for s in last.values()],
        "counts": {name: dict(values) for name, values in vars(done.counts).items()},
    }  # fmt: skip
    pool = Pool()
    try:
        text = json.dumps(pool.packed(plain, "the epoch"))
    except TypeError as error:
        raise UnkeptError(str(error)) from error
    return pool.held, text


def source_of(row: Row, cond: Cond) -> str:
    """A hash of a row as it was read, and of its condition."""
    try:
        return bytes(pack({"row": repr(row), "cond": dict(cond)}, b"")[-1].parts[0]).hex()
    except TypeError as error:
        raise UnkeptError(str(error)) from error


def unpacked(tensors: Mapping[str, Tensor], text: str, collector: "RolloutCollector") -> FinishedWork:
    """The inverse of `packed`, on the process of the same number.

    Raises:
        CheckpointError: the rows have changed.
        ValueError, KeyError, TypeError, ...: the data is malformed; see `packing.MALFORMED`.
    """
    plain = rebuilt(json.loads(text), {int(name): tensor for name, tensor in tensors.items()})
    rollouts = [_rollout(one, collector) for one in plain["rollouts"]]
    if [(r.group, r.ids) for r in rollouts] != collector.samples()[: len(rollouts)]:
        raise ValueError("other samples")
    for group, one in {r.group: r for r in rollouts}.items():
        if plain["sources"][str(group)] != source_of(one.row, one.cond):
            raise CheckpointError(f"{one.row.source}, or its condition, has changed")
    last = [samples_of(collector.context.rows[row], [_media(media)])[0] for row, media in plain["last"]]
    waiting = [[last[k] for k in those] for those in plain["waiting"]]
    stream = StreamState(waiting, [[] if found is None else [found] for found in plain["found"]], plain["datasets"])
    kinds: dict[str, Any] = {
        "scored": Counter,
        "missing": Counter,
        "errors": Counter,
        "cause": dict,
        "seconds": partial(defaultdict, float),
    }
    counts = Counts(**{name: kinds[name](values) for name, values in plain["counts"].items()})
    return FinishedWork(rollouts, plain["taken"], plain["ids"], stream, counts, plain["together"])


# -- samples ----------------------------------------------------------------------------------------------------------------------------


def _plain(rollout: Rollout) -> dict[str, Any]:
    return {
        "group": rollout.group, "ids": list(rollout.ids), "media": [_plain_media(m) for m in rollout.media], "x0": _laid(rollout.x0),
        "schedule": rollout.schedule, "steps": [{name: _laid(value) for name, value in vars(s).items()} for s in rollout.steps],
    }  # fmt: skip


def _rollout(plain: Mapping[str, Any], collector: "RolloutCollector") -> Rollout:
    train, device = collector.context.config.train, collector.context.accelerator.device
    epoch, group = collector.context.progress.epoch, plain["group"]
    row = collector.epoch_groups(epoch)[group].row

    def there(value: Any) -> Any:
        """The device on which samples wait until they are trained on."""
        here = to_device(_lifted(value), device)
        return to_cpu(here) if train.offload_samples_to_cpu else here

    steps = [Step(**{name: there(value) for name, value in step.items()}) for step in plain["steps"]]
    media, ids, schedule = [_media(one) for one in plain["media"]], tuple(plain["ids"]), plain["schedule"]
    source, cond = collector.context.rows[row], collector.cond_of(row)[1]
    return Rollout(source, cond, steps, media, group, epoch, ids, there(plain["x0"]), schedule, ConditionMemo())


def _laid(value: Any) -> Any:
    """A tensor with its memory layout, because the layout determines the order of sums."""
    if isinstance(value, torch.dtype):
        return {"dtype": NAMES[value]}
    if not isinstance(value, Tensor):
        return value
    order = sorted(range(value.ndim), key=value.stride, reverse=True)
    return {"order": order, "values": value.detach().permute(order)}


def _lifted(plain: Any) -> Any:
    if not isinstance(plain, dict):
        return plain
    if "dtype" in plain:
        return DTYPES[plain["dtype"]]
    order = plain["order"]
    return plain["values"].permute([order.index(d) for d in range(len(order))])


def _plain_media(media: Any) -> Any:
    if not isinstance(media, Clip):
        return media
    sound = None if media.audio is None else torch.from_numpy(np.ascontiguousarray(media.audio))
    return {"frames": media.frames, "fps": media.fps, "audio": sound, "sample_rate": media.sample_rate}


def _media(plain: Any) -> Any:
    if not isinstance(plain, dict):
        return plain
    sound = None if plain["audio"] is None else plain["audio"].numpy()
    return Clip(plain["frames"], plain["fps"], sound, plain["sample_rate"])
