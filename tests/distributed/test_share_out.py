"""FSDP2 shares weights out as their file has them: whose rows they are casts them to more bits, and nobody casts the whole."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from flow_factory.distributed.engines.fsdp import shard
from flow_factory.distributed.engines.narrow import POLICY
from flow_factory.policy.policy import Policy

MANY, RANK = 4, 1


@pytest.fixture
def group() -> Iterator[None]:
    """One of four processes, of which the others only seem to be there."""
    dist.init_process_group("fake", store=FakeStore(), rank=RANK, world_size=MANY)
    yield
    dist.destroy_process_group()


class Made(TorchDispatchMode):
    """The most values that a new tensor of float32 has had."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if type(out) is Tensor and out.dtype == torch.float32:
            self.most = max(self.most, out.numel())
        return out


def test_nobody_casts_what_others_hold(group: None) -> None:
    block = nn.Sequential(nn.Linear(16, 30), nn.Linear(30, 8)).bfloat16()
    block[0].requires_grad_(False)
    whole = {name: p.detach().clone() for name, p in block.named_parameters()}
    policy = Policy.__new__(Policy)
    nn.Module.__init__(policy)
    policy.block = block
    policy.wanted = {p: torch.float32 if p.requires_grad else torch.bfloat16 for p in block.parameters()}
    with Made() as made:
        for part in (block, policy):
            shard(part, policy, mesh=init_device_mesh("cpu", (MANY,)), mp_policy=POLICY)
    assert 0 < made.most <= 30 * 8 / MANY and not policy.wanted
    for name, p in block.named_parameters():
        assert isinstance(p, DTensor) and p.requires_grad == name.startswith("1")
        assert p.dtype == (torch.float32 if p.requires_grad else torch.bfloat16)
        assert torch.equal(p.to_local(), whole[name].chunk(MANY)[RANK].to(p.dtype))
    groups = block._get_fsdp_state()._fsdp_param_group.fsdp_params
    assert all(param.sharded_param is p for param, p in zip(groups, block.parameters(), strict=True))
    assert all(param._sharded_param_data.dtype == p.dtype for param, p in zip(groups, block.parameters(), strict=True))
