"""DeepSpeed's ZeRO: the optimiser's state is sharded, from stage 2 also gradients, in stage 3 also weights."""

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn

from flow_factory.checkpoints.state_files import Fill, Slab
from flow_factory.config.engine import EngineSettings
from flow_factory.distributed.engines.base import Engine, MakeOptimizer, require_finite
from flow_factory.policy.lora import MAIN
from flow_factory.policy.policy import Policy
from flow_factory.utils.errors import UserError

BUCKET = 500_000_000
"""DeepSpeed's default of reduce_bucket_size, in elements; where less is trained, it is that much."""
MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's state of a parameter, besides the number of steps."""


class Zero(Engine):
    """DeepSpeed's engine around the policy, in the weights' own dtypes.

    Used without accelerate's `prepare`, which on a CPU would pass it over in silence.
    """

    def __init__(self, settings: EngineSettings, accelerator: Accelerator, max_norm: float):
        super().__init__(settings, accelerator, max_norm)
        self.collective = settings.shards_weights
        self.stepped = self.at_end = True  # nothing of the next step is computed yet; its first or last backward is next
        try:
            import deepspeed
        except ImportError as error:
            raise UserError(f"{settings.name} needs DeepSpeed: pip install 'flow-factory[deepspeed]'") from error
        if accelerator.device.type == "cpu":
            import deepspeed.ops

            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # gloo does, and this one would be compiled for minutes
        deepspeed.init_distributed("gloo" if accelerator.device.type == "cpu" else "nccl", auto_mpi_discovery=False)
        self.deepspeed = deepspeed

    def wrap(self, policy: Policy, make_optimizer: MakeOptimizer) -> None:
        sizes = [p.numel() for p in policy.trained().values()]
        settings = config_of(self.settings, self.max_norm, sum(sizes))
        device, own = self.accelerator.device, self.accelerator.device.type == "cpu"  # DeepSpeed writes to what it shares out
        if self.settings.stage == 3:
            for part in (OneByOne(policy.materializing(policy, device, own)), policy):  # then the weights that needed no cast
                self.deepspeed.zero.Init(module=part, config_dict_or_path=settings)
        policy.materialize(policy, device, own)
        self.policy, trained = policy, policy.trained()
        self.optimizer = make_optimizer(policy.groups())
        self.wrapped, self.sharded, *_ = self.deepspeed.initialize(
            model=policy, optimizer=self.optimizer, model_parameters=list(trained.values()), config=settings
        )
        if self.settings.stage == 3 and not self.settings.offload_optimizer:
            self._share_float32()

    def _share_float32(self) -> None:
        """Drops DeepSpeed's copy of weights that are float32 and on the device already: it compares a device with a string."""
        for held, own in zip(self.sharded.fp16_partitioned_groups_flat, self.sharded.fp32_partitioned_groups_flat, strict=True):
            if held is not None and (held.dtype, held.device) == (own.dtype, own.device):
                own.data = held.data

    @property
    def name(self) -> str:
        return f"DeepSpeed ZeRO-{self.wrapped.zero_optimization_stage()}"

    def accumulating(self, last: bool) -> AbstractContextManager:
        self.at_end = self.stepped or last
        self.wrapped.set_gradient_accumulation_boundary(last)
        return nullcontext()

    def needed(self, own: list[bool]) -> list[bool]:
        """All experts at both ends of a step: DeepSpeed adds the gradients of those that it did not see first to those of the step before,
        and with offloading passes over those that it does not see last.
        """
        everyone = self.at_end and torch.is_grad_enabled() and len(self.policy.components) > 1
        return [True] * len(own) if everyone else super().needed(own)

    def backward(self, loss: Tensor) -> None:
        self.wrapped.backward(loss)
        self.stepped = False

    def step(self, role: str = MAIN) -> Tensor:
        """DeepSpeed passes a step over whose norm is not a number, but for 16-bit weights in stages 1 and 2, and says inf or -1."""
        self.wrapped.step()
        self.stepped = True
        self.written()
        norm = torch.as_tensor(self.wrapped.get_global_grad_norm())
        require_finite(torch.where(norm < 0, torch.nan, norm))
        return norm

    # -- the weights: stage 3 keeps a flat shard of each -----------------------------------------------------------------------

    def part(self, p: nn.Parameter) -> Tensor:
        return p.ds_tensor.data if self.collective else p  # type: ignore[attr-defined]

    def shape(self, p: nn.Parameter) -> torch.Size:
        return p.ds_shape if self.collective else p.shape  # type: ignore[attr-defined]

    def written(self) -> None:
        """Drops weights that were prefetched for the next forward, so that they are fetched again."""
        if self.collective:
            self.sharded.parameter_offload.partition_all_parameters()

    def adopted(self) -> None:
        for p in self.policy.trained().values():
            if self.collective:
                self.deepspeed.utils.safe_set_local_fp32_param(p, self.part(p).float())
            else:
                self.deepspeed.utils.safe_set_full_fp32_param(p, p.detach().float())

    def whole(self, p: nn.Parameter, keep: bool = True) -> Tensor | None:
        with self.deepspeed.zero.GatheredParameters([p], enabled=self.collective):
            return super().whole(p, keep)

    # -- the training state ----------------------------------------------------------------------------------------------------

    def stage(self, part: Tensor, shape: Sequence[int]) -> Tensor | Slab:
        """Stages a flat shard, which needs all processes; a whole tensor is staged as it is."""
        if not self.collective or not shape:
            return super().stage(part, shape)
        flat = part.detach().to(self.accelerator.device).flatten()
        everyone = flat.new_empty(flat.numel() * self.accelerator.num_processes)
        dist.all_gather_into_tensor(everyone, flat)
        return super().stage(everyone[: math.prod(shape)].view(*shape), shape)

    def room(self, part: Tensor, shape: Sequence[int]) -> Tensor | Slab:
        """Room for the rows that a flat shard touches."""
        if not self.collective or not shape:
            return super().room(part, shape)
        begin, long = self._span(part, shape)
        first, end = begin // long, -(-min(begin + part.numel(), math.prod(shape)) // long)
        return Slab(torch.empty(max(0, end - first), *shape[1:], dtype=part.dtype), first, tuple(shape))

    def unstage(self, saved: Tensor | Slab, part: Tensor) -> None:
        if not isinstance(saved, Slab):
            super().unstage(saved, part)
            return
        begin, long = self._span(part, saved.shape)
        mine = saved.rows.flatten()[max(0, begin - saved.first * long) :][: part.numel()]
        part.view(-1)[: len(mine)].copy_(mine)

    def _span(self, part: Tensor, shape: Sequence[int]) -> tuple[int, int]:
        """(the first value of this process's shard of a flat tensor, values in a row)"""
        return part.numel() * self.accelerator.process_index, max(1, math.prod(shape[1:]))

    def moments(self) -> dict[str, Tensor | Slab]:
        """Uses DeepSpeed's own access, which gathers the state of one parameter after the other."""
        states = list(self.optimizer.state.values())
        if not states:
            return {}
        get, out = self.deepspeed.utils.safe_get_full_optimizer_state, {}
        for name, p in self.policy.trained().items():
            for key in MOMENTS:
                out[f"{key}/{name}"] = super().stage(get(p, key).view(self.shape(p)), self.shape(p))
            out[f"step/{name}"] = states[0]["step"].cpu().clone()  # one for all
        return out

    def moment_shapes(self) -> dict[str, tuple[int, ...]]:
        shapes = {name: tuple(self.shape(p)) for name, p in self.policy.trained().items()} if self.optimizer.state else {}
        return {f"{key}/{name}": shape for name, shape in shapes.items() for key in MOMENTS} | {f"step/{name}": () for name in shapes}

    def load_moments(self, saved: Collection[str], fill: Fill) -> None:
        """In stage 3 each process reads its own part. In the other stages DeepSpeed takes the part from the whole tensor."""
        if not saved:  # before the first step
            return
        access = self.deepspeed.utils
        put = access.safe_set_local_optimizer_state if self.collective else access.safe_set_full_optimizer_state
        for name, p in self.policy.trained().items():
            for key in MOMENTS:
                mine = torch.zeros_like(self.part(p), dtype=torch.float32)
                target = self.room(mine, self.shape(p))
                fill(f"{key}/{name}", target)
                self.unstage(target, mine)
                put(p, mine, key)
        for state in self.optimizer.state.values():
            fill(f"step/{next(iter(self.policy.trained()))}", step := torch.empty(()))
            state["step"].copy_(step)

    def warm(self) -> None:
        super().warm()
        if not self.collective:
            self.sharded._lazy_init_hp_params_optimizer_state()  # which `moments` needs, and the first step would do

    def _stepped(self) -> list[list[Tensor]]:
        return [self.sharded.fp32_partitioned_groups_flat if self.collective else self.sharded.single_partition_of_fp32_groups]


class OneByOne(nn.Module):
    """Lists weights that are cast while they are listed. DeepSpeed shards each one, and frees the whole, before it asks for the next."""

    def __init__(self, weights: Iterator[nn.Parameter]):
        super().__init__()
        self.weights = weights

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        return self.weights


def config_of(settings: EngineSettings, max_norm: float, trained: int) -> dict[str, Any]:
    """DeepSpeed's own configuration; accumulation, clipping and precision are the run's.

    Args:
        trained: how many weights are, of which a LoRA has less than the 2 GB that DeepSpeed's bucket would take.
    """
    zero: dict[str, Any] = {"stage": settings.stage, **(settings.extra.get("zero_optimization") or {})}
    zero.setdefault("reduce_bucket_size", min(BUCKET, trained))
    zero.setdefault("memory_efficient_linear", False)  # rounds otherwise than the stock one in 16 bits, in evaluation too
    zero["stage3_param_persistence_threshold"] = 0  # a small weight that stays gathered would outlive a swap
    for part, there in (("param", settings.offload), ("optimizer", settings.offload_optimizer)):
        zero[f"offload_{part}"] = {"device": "cpu" if there else "none", "pin_memory": there and torch.cuda.is_available()}
    return {
        **settings.extra,
        "zero_optimization": zero,
        "train_micro_batch_size_per_gpu": 1,  # what a micro-batch is, DeepSpeed need not know
        "gradient_accumulation_steps": 1,  # the loss comes divided, and `backward` says where a step is
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # torch's AdamW, the same on every engine, and nothing to compile
        "gradient_clipping": max_norm,
        "steps_per_print": 2**62,
    }
