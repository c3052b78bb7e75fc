"""Groups that several processes share, because there are fewer groups than processes."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator

from flow_factory.config.plan import Deal
from flow_factory.core.condition_memo import ConditionMemo
from flow_factory.distributed.collectives import exchange
from flow_factory.types import Cond, Rollout, Row
from flow_factory.utils.offload import to_device


class Group(NamedTuple):
    """Samples of one row to be scored: those of a process, or the whole group."""

    number: int
    row: Row
    ids: list[int]
    media: list[Any]


def whole_groups(accelerator: Accelerator, deal: Deal, parts: Sequence[Group]) -> list[Group]:
    """The groups that this process scores. Each group is scored by one of the processes that have parts of it.

    All processes call this with parts of the same groups. Only here are images to be scored sent between processes.
    """
    mine: dict[int, list[Group]] = {}
    for part in parts if deal.leads(accelerator.process_index) else ():  # the others of a team have the same
        holders = deal.holders(part.number)
        mine.setdefault(holders[part.number % len(holders)], []).append(part)
    come = [part for some in exchange(accelerator, mine).values() for part in some]
    samples: dict[int, dict[int, Any]] = {}
    for part in come:
        samples.setdefault(part.number, {}).update(zip(part.ids, part.media, strict=True))
    rows = {part.number: part.row for part in come}
    return [Group(s, rows[s], sorted(samples[s]), [samples[s][i] for i in sorted(samples[s])]) for s in sorted(samples)]


def share(accelerator: Accelerator, deal: Deal, rollouts: Sequence[Rollout], conds: Sequence[Cond], waits: bool = False) -> list[Rollout]:
    """All micro-batches of the groups of which this process has parts, in the order of the epoch. Its own are returned unchanged.

    Latents are sent between processes. Results that depend on the condition only are computed again. All micro-batches of a row share one
    condition.

    Args:
        deal: the distribution of the trained micro-batches.
        waits: whether rollouts are kept in main memory (`train.offload_samples_to_cpu`).
    """
    me, theirs = accelerator.process_index, dict[int, list[Rollout]]()
    for to in range(deal.processes) if deal.leads(me) else ():  # the others of a team have the same
        requested = {group for group, _ in deal.of(to)} if to // deal.team != me // deal.team else ()
        theirs[to] = [replace_all(r, "cpu", cond={}, memo=None, media=[]) for r in rollouts if r.group in requested]
    own = {r.ids: r for r in rollouts}
    everyone = {r.ids: r for some in exchange(accelerator, theirs).values() for r in some} | own
    wanted = {group for group, _ in deal.of(me)}
    needed = [r for _, r in sorted(everyone.items()) if r.group in wanted]
    home = "cpu" if waits else accelerator.device
    read = {r.row.id: r.cond for r in rollouts}
    for row in {r.row.id for r in needed} - read.keys():
        read[row] = to_device(conds[row], home)
    return [r if r.ids in own else replace_all(r, home, cond=read[r.row.id], memo=ConditionMemo()) for r in needed]


def replace_all(rollout: Rollout, device: torch.device | str, **others: Any) -> Rollout:
    """The rollout with its tensors on the device, and with other fields replaced."""
    steps = [replace(s, **to_device(vars(s), device)) for s in rollout.steps]
    new = replace(rollout, steps=steps, x0=to_device(rollout.x0, device), **others)
    new.rewards, new.advantage = rollout.rewards, to_device(rollout.advantage, device)
    return new
