"""The interface of every engine, and plain data parallel, which also serves a single process."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from flow_factory.checkpoints.state_files import Fill, Slab
from flow_factory.config.engine import EngineSettings
from flow_factory.distributed.collectives import any_of_ranks
from flow_factory.distributed.engines.shards import slab_of
from flow_factory.policy.lora import MAIN
from flow_factory.policy.policy import Policy
from flow_factory.utils.errors import GradientError

MakeOptimizer = Callable[[Iterable[Any]], torch.optim.Optimizer]
"""A parameter group of `Policy.groups`."""


class Engine:
    """Wraps the policy, and steps it. All weights and their gradients are on every process.

    A `part` is what this process holds of a parameter's values: here all of them, elsewhere a shard. Copies of the weights are kept as
    parts, and arithmetic on them needs no other process.

    Attributes:
        collective: whether every forward is one of all processes together, so that all must ask for as many.
    """

    collective = False

    def __init__(self, settings: EngineSettings, accelerator: Accelerator, max_norm: float):
        self.settings, self.accelerator, self.max_norm = settings, accelerator, max_norm
        self.policy: Policy
        self.wrapped: Any
        self.optimizer: torch.optim.Optimizer
        """The torch optimiser, whose learning rate a schedule sets."""

    # -- before training -------------------------------------------------------------------------------------------------------

    def wrap(self, policy: Policy, make_optimizer: MakeOptimizer) -> None:
        """Puts the policy on its device, whole or in shards, then makes the optimiser of the trained weights."""
        device = self.accelerator.device
        policy.materialize(policy, device)
        self.policy = policy.to(device)
        if device.type == "cpu":  # DDP would write to the frozen ones, which are a file's memory that all processes share
            frozen = [name for name, p in policy.named_parameters() if not p.requires_grad]
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(policy, frozen)
        self.optimizer = make_optimizer(policy.groups())
        self.wrapped, self.stepper = self.accelerator.prepare(policy, self.optimizer)

    @property
    def name(self) -> str:
        """The name of the engine, from the objects that were built."""
        return "DDP" if isinstance(self.wrapped, DistributedDataParallel) else "one process"

    def describe(self) -> str:
        """A line: the engine, and the number of weights on the first process."""
        params = list(self.policy.parameters())
        held, whole = sum(self.part(p).numel() for p in params), sum(self.shape(p).numel() for p in params)
        many = self.accelerator.num_processes
        return f"{self.name}{f' on {many} processes' if many > 1 else ''}: {held / 1e6:.4g} M of {whole / 1e6:.4g} M weights on the first"

    # -- training --------------------------------------------------------------------------------------------------------------

    def __call__(self, method: str, *args: Any) -> Any:
        """A whole sampling, velocity or evaluation: `Policy.forward`."""
        return self.wrapped(method, *args)

    def accumulating(self, last: bool) -> AbstractContextManager:
        """Around a forward and its backward; `last`: an optimiser step is next, and the gradient is to be everyone's mean."""
        return nullcontext() if last else self.accelerator.no_sync(self.wrapped)

    def gathered(self) -> AbstractContextManager:
        """Around the forwards of a rollout or an evaluation, without gradient and of the same weights."""
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Runs the backward pass of a loss; gradients are added."""
        self.accelerator.backward(loss)

    def step(self, role: str = MAIN) -> Tensor:
        """Clips the gradient of one network, takes its optimiser step and forgets the gradient; returns the norm before.

        The weights of other networks have no gradient then, and the optimiser passes over them: their moments stay as they are.

        Raises:
            GradientError: it is not a number, on all processes alike; no weight has changed.
        """
        self.complete_gradients(role)
        norm = torch.as_tensor(self.accelerator.clip_grad_norm_(self.policy.trained(role).values(), self.largest(role)))
        scaler = self.accelerator.scaler
        if scaler is None or scaler.get_scale() < 1:  # of fp16; it passes such steps over itself, and halves until they fit
            require_finite(norm)
        self.stepper.step()
        self.stepper.zero_grad(set_to_none=True)
        return norm

    def needed(self, own: list[bool]) -> list[bool]:
        """Which transformers all processes run in a velocity call, given those that this one needs. All processes call it together."""
        return any_of_ranks(own)

    def complete_gradients(self, role: str = MAIN) -> None:
        """Gives an expert that no point of a step used a gradient of 0 instead of None: its moments then decay on every engine alike."""
        if len(self.policy.components) > 1:
            for p in self.policy.trained(role).values():
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad

    def largest(self, role: str = MAIN) -> float:
        """The norm to which a network's gradient is clipped."""
        return next((g["max_grad_norm"] for g in self.optimizer.param_groups if g.get("role") == role), self.max_norm)

    # -- the weights -----------------------------------------------------------------------------------------------------------

    def part(self, p: nn.Parameter) -> Tensor:
        """What this process holds of a parameter; writing to it changes the parameter, once `written` was called."""
        return p

    def shape(self, p: nn.Parameter) -> torch.Size:
        """The shape of the whole parameter."""
        return p.shape

    def written(self) -> None:
        """Called after parts were written: removes every copy of the old values."""

    def adopted(self) -> None:
        """Called after parts were written permanently: updates the optimiser's own copies of the weights."""

    def whole(self, p: nn.Parameter, keep: bool = True) -> Tensor | None:
        """All values of a parameter, on the CPU of the processes that keep them. Called by all processes together."""
        return p.detach().cpu() if keep else None

    # -- the training state: tensors on the CPU, of whole parameters' shapes on every engine -------------------------------------------

    def stage(self, part: Tensor, shape: Sequence[int]) -> Tensor | Slab:
        """A copy of what this process writes of a tensor of this shape, of which it holds the part. Called by all processes together."""
        if self.accelerator.num_processes == 1 or not shape:
            return part.detach().to("cpu", copy=True)
        return slab_of(part, 0, shape, self.accelerator.process_index, self.accelerator.num_processes)

    def room(self, part: Tensor, shape: Sequence[int]) -> Tensor | Slab:
        """Where to read what this process holds of a tensor of this shape."""
        return torch.empty(tuple(shape), dtype=part.dtype)

    def unstage(self, saved: Tensor | Slab, part: Tensor) -> None:
        """Writes what was read into the part."""
        part.detach().copy_(saved.rows if isinstance(saved, Slab) else saved)

    def scatter(self, whole: Tensor, part: Tensor) -> None:
        """Writes this process's part of a tensor that all have whole."""
        mine = self.room(part, whole.shape)
        if isinstance(mine, Slab):
            mine.rows.copy_(whole[mine.first : mine.first + len(mine.rows)])
        self.unstage(mine if isinstance(mine, Slab) else whole, part)

    def moments(self) -> dict[str, Tensor | Slab]:
        """The optimiser's state, staged, as `<its key>/<parameter>`; nothing before the first step."""
        return {f"{key}/{name}": self.stage(part, shape) for name, key, part, shape in self._moments()}

    def moment_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the whole tensors, by the same names."""
        return {f"{key}/{name}": tuple(shape) for name, key, _, shape in self._moments()}

    def load_moments(self, saved: Collection[str], fill: Fill) -> None:
        """The inverse of `moments`; a parameter of which nothing was saved has not been stepped yet.

        Args:
            saved: the names of what there is.
        """
        for name, key, part, shape in list(self._moments()):
            if f"{key}/{name}" in saved:
                target = self.room(part, shape)
                fill(f"{key}/{name}", target)
                self.unstage(target, part)
            else:
                self.optimizer.state.pop(self.policy.trained()[name], None)

    def _moments(self) -> Iterator[tuple[str, str, Tensor, Sequence[int]]]:
        """(parameter, key, what this process holds, shape of the whole)"""
        for name, p in self.policy.trained().items():
            for key, value in self.optimizer.state.get(p, {}).items():
                yield name, key, value, value.shape

    def warm(self) -> None:
        """Makes the optimiser's state where there is none, by a step of no length."""
        groups, stepped = self.optimizer.param_groups, self._stepped()
        former, params = [dict(group) for group in groups], [p for tensors in stepped for p in tensors]
        gradients = [p.grad for p in params]
        for group, tensors in zip(groups, stepped, strict=True):
            group |= {"params": tensors, "lr": 0.0}
        for p in params:
            p.grad = torch.zeros_like(p)
        self.optimizer.step()
        for group, before in zip(groups, former, strict=True):
            group |= before
        for p, gradient in zip(params, gradients, strict=True):
            p.grad = gradient

    def _stepped(self) -> list[list[Tensor]]:
        """The tensors that the optimiser steps, by group."""
        return [group["params"] for group in self.optimizer.param_groups]


def require_finite(norm: Tensor) -> None:
    """Raises:
    GradientError: the norm of a gradient is not a number.
    """
    if not norm.isfinite():
        raise GradientError(f"the norm of the gradient is {norm.item():g}")
