"""Golden vectors as tensors, and how near a number has to be to them."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"


def golden(name: str) -> dict[str, Tensor]:
    """The numeric arrays of a file, in their own dtype."""
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return {k: torch.from_numpy(np.asarray(a)) for k, a in arrays.items() if a.dtype.kind in "fib"}


def close(actual: Tensor, expected: Tensor, rel: float = 1e-9) -> None:
    torch.testing.assert_close(actual.detach(), expected, rtol=rel, atol=rel * float(expected.abs().max()))


def gradient(loss: Tensor, leaf: Tensor) -> Tensor:
    return torch.autograd.grad(loss, leaf)[0]


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
