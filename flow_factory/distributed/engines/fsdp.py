"""FSDP2: torch's `fully_shard` on each block and on the policy around them."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from flow_factory.checkpoints.state_files import Slab
from flow_factory.distributed.engines.base import Engine, MakeOptimizer, require_finite
from flow_factory.distributed.engines.narrow import POLICY, gathered_dtypes, narrow
from flow_factory.distributed.engines.shards import first_of, slab_of
from flow_factory.models.loading import DTYPES
from flow_factory.policy.lora import MAIN
from flow_factory.policy.policy import Policy
from flow_factory.utils.errors import UserError


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
        self.mesh = self._mesh(device.type)
        offload = CPUOffloadPolicy(pin_memory=device.type == "cuda") if self.settings.offload else OffloadPolicy()
        names = self.settings.blocks or policy._no_split_modules
        blocks = [m for m in policy.modules() if type(m).__name__ in names and any(True for _ in m.parameters())]
        if not blocks:
            raise UserError(f"FSDP2: the model has no blocks of the classes {', '.join(names)}; see fsdp_transformer_layer_cls_to_wrap")
        keys: dict[str, Any] = {"mesh": self.mesh, "offload_policy": offload, "mp_policy": POLICY}
        for block in reversed(blocks):  # inner ones first; each goes to the device as it is shared out, not the whole before
            shard(block, policy, reshard_after_forward=self.settings.reshard, **keys)
        shard(policy, policy, reshard_after_forward=True, **keys)
        self.wrapped = self.policy = policy
        narrow(self.policy, gathered_dtypes(self.policy, DTYPES[self.accelerator.mixed_precision]))
        self.optimizer = make_optimizer(self.policy.groups())
        self.lora = any("lora_" in name for name in self.policy.trained())

    def _mesh(self, kind: str) -> DeviceMesh:
        """The mesh: one dimension, or (machines, processes) if each machine has all weights."""
        many = self.accelerator.num_processes
        self.sharers = self.settings.sharers(many)
        if self.sharers == many:
            return init_device_mesh(kind, (many,))
        return init_device_mesh(kind, (many // self.sharers, self.sharers), mesh_dim_names=("replicate", "shard"))

    @property
    def name(self) -> str:
        return "FSDP2" if all(isinstance(p, DTensor) for p in self.policy.parameters()) else "FSDP2, not of all weights"

    def accumulating(self, last: bool) -> AbstractContextManager:
        """A LoRA's gradient is reduced once a step. Of all weights it would have to be kept whole until then: it is reduced each time, and
        over machines that have all weights each, once a step.
        """
        self.wrapped.set_requires_gradient_sync(last or not self.lora)
        self.wrapped.set_requires_all_reduce(last)
        return nullcontext()

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """With `keep`, the first forward gathers the weights, and the end of the context frees them."""
        if self.settings.keep:
            self.wrapped.set_reshard_after_forward(False)
        try:
            yield
        finally:
            if self.settings.keep:
                self.wrapped.set_reshard_after_forward(self.settings.reshard)
                self.wrapped.set_reshard_after_forward(True, recurse=False)
                self.written()

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self, role: str = MAIN) -> Tensor:
        self.complete_gradients(role)
        norm = nn.utils.clip_grad_norm_(self.policy.trained(role).values(), self.largest(role))
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        require_finite(norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.written()
        return norm

    def part(self, p: nn.Parameter) -> Tensor:
        return _local(p.detach())

    def written(self) -> None:
        """Frees blocks that were left gathered after a forward, so that the next one gathers the new weights."""
        for module in self.policy.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def whole(self, p: nn.Parameter, keep: bool = True) -> Tensor | None:
        whole = p.detach().to(self.accelerator.device).full_tensor()  # type: ignore[attr-defined]
        return whole.cpu() if keep else None

    def stage(self, part: Tensor, shape: Sequence[int]) -> Tensor | Slab:
        """If several machines hold the same rows, each writes a share of them."""
        if not shape:
            return super().stage(part, shape)
        number, many = self.accelerator.process_index, self.accelerator.num_processes
        return slab_of(part, self._first_row(shape), shape, number // self.sharers, many // self.sharers)

    def room(self, part: Tensor, shape: Sequence[int]) -> Tensor | Slab:
        return Slab(torch.empty(part.shape, dtype=part.dtype), self._first_row(shape), tuple(shape)) if shape else super().room(part, shape)

    def unstage(self, saved: Tensor | Slab, part: Tensor) -> None:
        super().unstage(saved, _local(part))

    def _first_row(self, shape: Sequence[int]) -> int:
        """The first row that this process holds."""
        return first_of(shape[0], self.accelerator.process_index % self.sharers, self.sharers)

    def _moments(self) -> Iterator[tuple[str, str, Tensor, Sequence[int]]]:
        return ((name, key, _local(value), shape) for name, key, value, shape in super()._moments())


def shard(part: nn.Module, policy: Policy, **keys: Any) -> None:
    """Shards a part in the dtype of its file, then casts each process's rows to their final dtype. So each process casts only its own rows.

    Args:
        keys: of `fully_shard`.
    """
    unmaterialized = policy.unmaterialized(part)
    fully_shard(part, **keys)
    dtypes = {module._parameters[name]: dtype for module, name, dtype in unmaterialized}
    part._apply(lambda rows: rows.to(dtypes.get(rows, rows.dtype)))  # which FSDP2 follows


def _local(value: Tensor) -> Tensor:
    return value.to_local() if isinstance(value, DTensor) else value
