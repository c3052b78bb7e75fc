"""Every random draw as a pure function of (seed, purpose, key): there is no stream that depends on earlier or parallel draws.

Purposes in use and their keys, e.g. "init" (epoch, sample), "sde" (epoch, sample, step), "order" (epoch), "eval" (row), "steps" and
"window" (epoch[, group]), "strata" (epoch), "times" and "pair_times" (epoch, ...).
"""

import hashlib
import struct
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

WORDS = 624
STATE = slice(24, 24 + WORDS * 8)
"""Where the bytes of a CPU generator's state hold the Mersenne twister's words, as uint64."""


def generator(seed: int, purpose: str, *key: int) -> torch.Generator:
    """A new CPU generator that depends only on this seed, purpose and key (64-bit integers).

    Always on the CPU, so that every device gets the same numbers; move the result.
    """
    message = purpose.encode() + b"\0" + struct.pack(f">{1 + len(key)}q", seed, *key)
    # manual_seed keeps 32 bits on the CPU. Among 1e5 keys, two would share their noise with probability 2/3. So the whole state is hashed.
    words = np.frombuffer(hashlib.shake_128(message).digest(WORDS * 4), "<u4").astype(np.uint64)
    result = torch.Generator()
    state = result.get_state()
    state[STATE] = torch.from_numpy(words.view(np.uint8))
    return result.set_state(state)


def normal(shape: Sequence[int], dtype: torch.dtype, device: torch.device | str, seed: int, purpose: str, *key: int) -> Tensor:
    """Standard normals, drawn in float32 on the CPU, then moved and cast."""
    return torch.randn(tuple(shape), generator=generator(seed, purpose, *key)).to(device, dtype)


def choose_steps(candidates: Sequence[int], k: int | None, seed: int, epoch: int, *group: int) -> tuple[int, ...]:
    """The epoch's stochastic steps, ascending and the same on every rank: k of the candidates; None means all.

    `group` is the id of a prompt group, for a choice per group.

    Raises:
        ValueError: k is not in 0..len(candidates).
    """
    if k is None:
        return tuple(sorted(candidates))
    if not 0 <= k <= len(candidates):
        raise ValueError(f"cannot choose {k} of the {len(candidates)} candidate steps {list(candidates)}")
    order = torch.randperm(len(candidates), generator=generator(seed, "steps", epoch, *group))
    return tuple(sorted(candidates[i] for i in order[:k].tolist()))
