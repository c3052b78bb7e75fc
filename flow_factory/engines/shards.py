"""Parts of tensors as torch's distributed checkpoint knows them: DTensors on the CPU, cut along their first dimension."""

from collections.abc import Sequence
from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard


def local_shard(mine: Tensor, shape: Sequence[int]) -> DTensor:
    """This process's rows of a tensor of that shape, cut as `Tensor.chunk` cuts."""
    stride = torch.empty(*shape, device="meta").stride()
    return DTensor.from_local(mine, _everyone(), [Shard(0)], run_check=False, shape=torch.Size(shape), stride=stride)


def rows_of(whole: Tensor) -> Tensor:
    """This process's rows."""
    chunks, rank = whole.chunk(dist.get_world_size()), dist.get_rank()
    return chunks[rank] if rank < len(chunks) else whole[:0]


@cache
def _everyone() -> DeviceMesh:
    return init_device_mesh("cpu", (dist.get_world_size(),))
