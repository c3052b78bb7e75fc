"""The memory of the reward models' weights, from the headers of their files."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from flow_factory.config import RunConfig
from flow_factory.hparams import RewardArguments
from flow_factory.memory.parts import Part
from flow_factory.rewards import REWARDS
from flow_factory.rewards.base import BaseRewardModel
from flow_factory.rewards.loading import arguments, require_files, reward_class
from flow_factory.rewards.sources import Weights, asking
from flow_factory.utils.errors import UserError
from flow_factory.utils.tensor_file import read_header


@dataclass(frozen=True)
class RewardMemory:
    """What the rewards of a run take, as far as it is known."""

    parts: list[Part] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    """A line for each reward whose weights are not counted."""


def reward_memory(config: RunConfig) -> RewardMemory:
    """The weights of the rewards of training and evaluation; a model that several entries share counts once."""
    found, seen = RewardMemory(), set()
    for entry in arguments((*config.rewards, *config.evaluated_by)):
        identity = (REWARDS.path(entry.reward_model), entry.dtype, entry.device, repr(sorted(entry.extra_kwargs.items())))
        if identity in seen:
            continue
        seen.add(identity)
        try:
            sizes = list(_sizes(entry))
        except (UserError, OSError, ValueError) as error:
            found.unknown.append(f"not counted: reward {entry.name}: {error}")
            continue
        if lacking := [name for name, size in sizes if size is None]:
            found.unknown.append(f"not counted: reward {entry.name}: {', '.join(lacking)} is not on this machine")
        size, device = sum(size for _, size in sizes if size is not None), torch.device(entry.device)
        if size and device.index:
            found.unknown.append(f"not counted: reward {entry.name}: its {size * 1e-9:.2f} GB are on {device}")
            continue
        found.parts.append(Part(f"weights of the reward {entry.name}", size * 1e-9, host=device.type == "cpu"))
    parts = [part for part in found.parts if part.gb > 0]
    for host in (False, True):  # they are loaded before the rows are encoded
        early = sum(part.gb for part in parts if part.host == host and part.phase == "always")
        parts += [Part("weights of the rewards", early, "encoding", host)] if early else []
    return RewardMemory(parts, found.unknown)


def _sizes(entry: RewardArguments) -> Iterator[tuple[str, float | None]]:
    """(name, bytes of the weights in the entry's dtype) of each source; None: it is not on this machine.

    Raises:
        UserError: see `require_files`; or its class does not say what it loads.
    """
    cls = reward_class(entry)
    if not cls.loads_weights:
        return
    with asking() as sources:
        require_files([entry], now=False)
    if not sources and not _of_ours(cls):
        raise UserError("its class has loads_weights, and its require_files asks neither require_folder nor require_file for weights")
    for source in sources:
        yield source.name, None if source.place is None else _bytes(source, entry.dtype)


def _of_ours(cls: type[BaseRewardModel]) -> bool:
    """Whether `require_files` is that of a reward here, which asks for all that is loaded on this machine: of a remote one, nothing."""
    module = cls.require_files.__module__
    return module.startswith("flow_factory.") and module != BaseRewardModel.__module__


def _bytes(source: Weights, dtype: torch.dtype) -> float:
    """Of safetensors by their tensors; other files count as they are."""
    assert source.place is not None
    files = [source.place] if source.place.is_file() else sorted(source.place.glob("model*.safetensors"))
    files = files or sorted(source.place.glob("pytorch_model*.bin"))
    return sum(_of_file(file, dtype) for file in files)


def _of_file(file: Path, dtype: torch.dtype) -> float:
    if file.suffix != ".safetensors":
        return float(file.stat().st_size)
    return float(sum(math.prod(tensor.shape) for tensor in read_header(file).values()) * dtype.itemsize)
