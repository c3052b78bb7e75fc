"""FSDP2: torch's `fully_shard` on each block and on the policy around them."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from flow_factory.engines.base import Engine, MakeOptimizer, require_finite
from flow_factory.engines.narrow import POLICY, gathered_dtypes, narrow
from flow_factory.engines.shards import local_shard
from flow_factory.errors import UserError
from flow_factory.models.loading import DTYPES
from flow_factory.policy import Policy


class FullyShard(Engine):
    """A process holds a row-wise shard of each weight, its gradient and its optimiser state.

    Used without accelerate's `prepare`, which would bring the frozen weights to float32. Weights are gathered in the dtypes in which they
    compute: what is computed is what one process computes.
    """

    collective = True

    def wrap(self, policy: Policy, make_optimizer: MakeOptimizer) -> None:
        if not dist.is_initialized():  # alone: shards that wait in main memory
            dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        device = self.accelerator.device
        self.mesh = init_device_mesh(device.type, (self.accelerator.num_processes,))
        offload = CPUOffloadPolicy(pin_memory=device.type == "cuda") if self.settings.offload else OffloadPolicy()
        names = self.settings.blocks or policy._no_split_modules
        blocks = [m for m in policy.modules() if type(m).__name__ in names and any(True for _ in m.parameters())]
        if not blocks:
            raise UserError(f"FSDP2: the model has no blocks of the classes {', '.join(names)}; see fsdp_transformer_layer_cls_to_wrap")
        keys: dict[str, Any] = {"mesh": self.mesh, "offload_policy": offload, "mp_policy": POLICY}
        for block in reversed(blocks):  # inner ones first; each goes to the device as it is shared out, not the whole before
            fully_shard(block, reshard_after_forward=self.settings.reshard, **keys)
        self.wrapped = self.policy = fully_shard(policy, reshard_after_forward=True, **keys)  # type: ignore[assignment]
        narrow(self.policy, gathered_dtypes(self.policy, DTYPES[self.accelerator.mixed_precision]))
        self.optimizer = make_optimizer(self.policy.trained().values())
        self.lora = any("lora_" in name for name in self.policy.trained())

    @property
    def name(self) -> str:
        return "FSDP2" if all(isinstance(p, DTensor) for p in self.policy.components.parameters()) else "FSDP2, not of all weights"

    def accumulating(self, last: bool) -> AbstractContextManager:
        """A LoRA's gradient is reduced once a step. Of all weights it would have to be kept whole until then: it is reduced each time."""
        self.wrapped.set_requires_gradient_sync(last or not self.lora)
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self) -> Tensor:
        self.complete_gradients()
        norm = nn.utils.clip_grad_norm_(self.policy.trained().values(), self.max_norm)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        require_finite(norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.written()
        return norm

    def part(self, p: nn.Parameter) -> Tensor:
        return _local(p.detach())

    def written(self) -> None:
        """Blocks that were left gathered after a forward are gathered anew."""
        for module in self.policy.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def whole(self, p: nn.Parameter) -> Tensor:
        return p.detach().to(self.accelerator.device).full_tensor().cpu()  # type: ignore[attr-defined]

    def stage(self, part: Tensor, shape: Sequence[int]) -> Tensor:
        mine = part.detach().to("cpu", copy=True)
        return local_shard(mine, shape) if shape else mine

    def unstage(self, saved: Tensor, part: Tensor) -> None:
        part.detach().copy_(_local(saved))

    def _moments(self) -> Iterator[tuple[str, str, Tensor, Sequence[int]]]:
        return ((name, key, _local(value), shape) for name, key, value, shape in super()._moments())


def _local(value: Tensor) -> Tensor:
    return value.to_local() if isinstance(value, DTensor) else value
