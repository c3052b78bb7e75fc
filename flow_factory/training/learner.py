"""The second half of an epoch: the policy is trained on rollouts."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from flow_factory.algorithms.base import Turn
from flow_factory.distributed.barriers import wait_for_everyone
from flow_factory.distributed.collectives import in_step
from flow_factory.training.context import TrainingContext
from flow_factory.training.health import SUSPECTS, diagnosis
from flow_factory.training.reward_gradients import reward_gradient
from flow_factory.training.update_checks import UpdateChecks
from flow_factory.training.windows import Window, as_many, compared, windows_of
from flow_factory.types import Cond, Point, Rollout
from flow_factory.utils.errors import GradientError
from flow_factory.utils.offload import to_cpu, to_device
from flow_factory.utils.terminal import bar

Work = TypeVar("Work")


@dataclass
class Learner:
    """The order of forwards, backwards and optimiser steps. All parts are built elsewhere and passed in."""

    context: TrainingContext
    fresh: bool = field(default=False, init=False)
    """Whether the policy has not changed in this epoch yet."""
    cond: tuple[Cond, Cond] | None = field(default=None, init=False)
    """The last used condition: as the rollouts store it, and on the device."""
    turn: Turn = field(init=False)
    """The current optimiser step."""

    def __post_init__(self) -> None:
        context, self.checks = self.context, UpdateChecks(self.context)
        sizes = {name: context.engine.shape(p).numel() for name, p in context.store.params.items()}
        self.roots = {network: sum(map(sizes.__getitem__, names)) ** 0.5 for network, names in context.store.networks.items()}
        """Network -> square root of its number of weights."""
        self.calls: dict[float | None, dict[str, Any]] = {None: context.call}
        """Guidance scale -> call arguments."""
        self.turn = context.algorithm.turns(context.progress.updates)[0]
        vae = getattr(self.context.adapter.pipe, "vae", None)
        if vae is not None and context.algorithm.through_sampler and vae._supports_gradient_checkpointing:
            vae.enable_gradient_checkpointing()

    def learn(self, groups: Sequence[Sequence[Rollout]], before: Callable[[Sequence[Rollout]], None] = lambda batches: None) -> None:
        """`num_inner_epochs` passes over all training points of whole groups, with an update after each window of micro-batches.

        Args:
            before: called with a window's micro-batches before their advantages are used.

        Raises:
            Interrupted: before the first step. After it the epoch is trained to its end.
        """
        context = self.context
        chosen = {g[0].group: context.algorithm.select(g) for g in groups}
        windows = windows_of(context, chosen)
        self.fresh = True
        with context.meter.phase("optimise"):
            self.compute_reward_gradients(windows)
            self.compute_kept_velocities(windows, chosen)
            wait_for_everyone("looking back")
            context.meter.step("looked back")
            for window in bar(
                windows * context.config.train.num_inner_epochs, "optimising", shown=context.accelerator.is_main_process, delay=5
            ):
                before(window.batches)
                self.update(window, chosen)
        self.cond = None
        self.follow("epoch")

    def compute_reward_gradients(self, windows: Sequence[Window]) -> None:
        """Computes the gradient of the rewards in the final states, for algorithms that learn through the sampler."""
        if not self.context.algorithm.through_sampler:
            return
        wait_for_everyone("earlier work")
        for batch in self.stoppable([b for window in windows for b in window.batches]):
            slope, metrics = reward_gradient(self.context, batch, self.cond_of(batch.cond))
            batch.slope = self.stored(slope)
            self.context.meter.add(metrics)
            self.context.meter.step("looking at rewards")

    def compute_kept_velocities(self, windows: Sequence[Window], chosen: dict[int, list[Rollout]]) -> None:
        """Computes the velocities under kept weights in one pass: the weights are swapped once, and inner epochs share the forwards.

        "old" weights without a copy are the policy's until the first update, and the forwards of that update give their velocities.
        """
        context = self.context
        for name in context.algorithm.weights if context.algorithm.precomputes_velocities else ():
            live = self.is_policy(name)
            batches = compared(context.algorithm, [b for window in windows[1 if live else 0 :] for b in window.batches], chosen)
            needed = [b for b in batches if context.algorithm.needs(name, b)]
            wait_for_everyone("earlier work")  # without limit; the collectives that follow have one
            with torch.no_grad(), context.store.use("policy" if live else name), context.engine.gathered():
                for batch in self.stoppable(as_many(context, needed, batches)):
                    for k, point in enumerate(self.points(batch)):
                        v = self.velocity_of(point, name)
                        if context.algorithm.needs(name, batch):
                            batch.frozen[k][name] = self.stored(v)
                    context.meter.step("looking back")

    def precompute(self, window: Window, chosen: dict[int, list[Rollout]]) -> None:
        """Gives the algorithm, without gradients, the points that its loss compares, if they are in several forwards."""
        algorithm = self.context.algorithm
        if self.turn.precompute is None:
            return
        if algorithm.scope == "group":
            groups = [chosen[group] for group in dict.fromkeys(b.group for b in window.batches) if len(chosen[group]) > 1]
            units = as_many(self.context, groups)
        elif algorithm.scope == "times" and not (self.fresh and self.is_policy("old")):  # else all ratios are 1
            units = [[b] for b in window.batches]
        else:
            return
        with torch.no_grad():
            for unit in self.stoppable(units):
                for block in self.blocks(unit):
                    computed = self.turn.precompute([p for _, _, p in block], self.velocity)
                    for (batch, k, _), peers in zip(block, computed, strict=True):
                        batch.peers[k] = peers

    def blocks(self, unit: Sequence[Rollout]) -> Iterator[list[tuple[Rollout, int, Point]]]:
        """The points that are compared with each other, as (micro-batch, index in it, point)."""
        if self.context.algorithm.scope == "times":
            yield [(b, k, p) for b in unit for k, p in enumerate(self.points(b))]
        else:
            for k, row in enumerate(zip(*map(self.points, unit), strict=True)):
                yield [(b, k, p) for b, p in zip(unit, row, strict=True)]

    def stoppable(self, work: Sequence[Work]) -> Iterator[Work]:
        """Iterates over work. Until the epoch's first optimiser step, all processes agree after each item on whether to stop."""
        return in_step(self.context.accelerator, self.context.interrupt, work, len(work)) if self.fresh else iter(work)

    def update(self, window: Window, chosen: dict[int, list[Rollout]]) -> None:
        """An optimiser step of each network in its turn; then the schedule and the copies that follow the policy."""
        context, progress, norms = self.context, self.context.progress, {}
        rate = float(context.schedule.get_last_lr()[0])
        for self.turn in context.algorithm.turns(progress.updates):
            if progress.updates % context.config.frequency_of(self.turn.network):
                continue
            with context.store.use(self.turn.network):
                self.precompute(window, chosen)
                norms[self.turn.network] = self.descend(window)
            self.fresh = False
        context.schedule.step()
        self.checks.effect(self.velocity_of, moves=rate > 0 and float(norms["policy"]) > 0)
        progress.updates += 1
        self.follow("update")
        context.meter.step("update")

    def descend(self, window: Window) -> Tensor:
        """One optimiser step on the mean loss of the window's points. The first of an epoch is checked to be on-policy.

        Returns:
            The norm of the gradient.
        """
        context, engine, meter = self.context, self.context.engine, self.context.meter
        left, again = sum(map(context.algorithm.size, window.batches)), context.config.train.num_inner_epochs > 1
        checked = not self.fresh
        for batch in self.stoppable(window.batches):
            for k, point in enumerate(self.points(batch)):
                left -= 1
                with engine.accumulating(last=left == 0), engine.policy.masks.drawn(*self.place(left)):
                    loss, metrics = self.turn.loss(point, self.velocity)
                    if not checked:
                        checked = True
                        self.checks.on_policy(metrics)
                    if left == 0:
                        since = meter.mark()
                    engine.backward(loss / window.points * context.plan.trained.team)  # each process of a team has a part of the gradient
                if self.fresh and again:  # the forward's velocities are those of the old policy
                    batch.frozen[k] |= self.stored(point.frozen)
                meter.add(metrics)
            meter.step("micro-batch")
        norm, network = self.step(), self.turn.network
        if not engine.collective:  # with collective forwards no work is a process's own
            meter.shared(since)
        of = "" if network == "policy" else f"{network}_"
        meter.add({f"{of}grad_norm": norm, f"{of}grad_rms": norm / self.roots[network]})
        return norm

    def place(self, left: int) -> tuple[int, ...]:
        """What is like no other point of the run: seed, update, points that are left of it, process."""
        context = self.context
        return context.config.train.seed, context.progress.updates, left, context.accelerator.process_index

    def step(self) -> Tensor:
        """The step of the engine. Its error gets the epoch and a hint.

        Raises:
            GradientError: the gradient is NaN or infinite.
        """
        engine, progress = self.context.engine, self.context.progress
        try:
            return engine.step(self.turn.network)
        except GradientError as error:
            here = f"epoch {progress.epoch + 1}, update {progress.updates}: {error}, and nothing can be learned from it"
            raise GradientError(f"{here}; {diagnosis(engine, progress.updates) or SUSPECTS}") from error

    def follow(self, after: str) -> None:
        """Updates the copies that follow the policy."""
        for name, average in self.context.algorithm.averages.items():
            if average.after == after:
                decay = average.decay(self.context.progress.updates)
                self.context.store.blend(name, decay)
                self.context.meter.add({f"{name}_decay": torch.tensor(decay)})

    # -- points and velocities -------------------------------------------------------------------------------------------------

    def points(self, batch: Rollout) -> Iterator[Point]:
        """The training points of a micro-batch on the device, with the stored velocities and peers."""
        for k, point in enumerate(self.turn.points(batch)):
            known = {"frozen": batch.frozen[k], "peers": batch.peers.get(k)}
            device = self.context.accelerator.device
            step = replace(point.step, **to_device(vars(point.step), device)) if point.step is not None else None
            here = {"step": step, "cond": self.cond_of(point.cond)}
            yield replace(point, **to_device(vars(point) | known | dict.fromkeys(here), device) | here)

    def cond_of(self, kept: Cond) -> Cond:
        """The condition on the device. Consecutive points of a group share one copy."""
        if self.cond is None or self.cond[0] is not kept:
            self.cond = kept, to_device(kept, self.context.accelerator.device)
        return self.cond[1]

    def velocity(self, point: Point, weights: str = "policy", guidance: float | None = None) -> Tensor:
        """See `types.Velocity`."""
        if weights in point.frozen and guidance is None:
            return point.frozen[weights]
        learns = weights == self.turn.network
        with nullcontext() if learns else torch.no_grad(), self.context.store.use(weights):
            v = self.velocity_of(point, weights, guidance)
        if weights != "policy":
            return v
        algorithm = self.context.algorithm
        self.checks.saw(point, v)
        if self.fresh and "old" in algorithm.weights and self.is_policy("old"):
            point.frozen["old"] = v.detach()
        return v

    def velocity_of(self, point: Point, weights: str = "policy", guidance: float | None = None) -> Tensor:
        """The velocity of the weights that are in the model, with the memo and guidance of the named ones, or with this guidance."""
        context = self.context
        scale = context.algorithm.guidance(weights) if guidance is None else guidance
        if scale not in self.calls:
            self.calls[scale] = context.adapter.with_guidance(context.call, scale or 0.0)
        memo = point.memo if scale is None else point.memo.sibling(str(scale))
        return context.engine("velocity", point.x, point.t, point.s, point.cond, self.calls[scale], memo)

    def is_policy(self, name: str) -> bool:
        """Whether these weights are the policy's until the epoch's first update."""
        return name == "old" and name not in self.context.algorithm.averages

    def stored(self, tensors: Any) -> Any:
        """The tensors on the device where they are kept until the next update."""
        return to_cpu(tensors) if self.context.config.train.offload_samples_to_cpu else tensors
