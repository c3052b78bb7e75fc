"""Groups that several processes share, for there are fewer of them than processes: what must see a whole group gets it here."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from flow_factory.config.plan import Deal
from flow_factory.frugal import moved
from flow_factory.memo import Memo
from flow_factory.types import Cond, Rollout, Row


class Group(NamedTuple):
    """Samples of one row that are to be scored: those of a process, or the whole group."""

    slot: int
    row: Row
    ids: list[int]
    media: list[Any]


def whole_groups(accelerator: Accelerator, deal: Deal, parts: Sequence[Group]) -> list[Group]:
    """The groups that this process scores, each on one of the processes that have parts of it; all must come with parts of the same ones.

    The one place where pictures go from process to process.
    """
    everyone: list[Group] = gather_object(list(parts))
    rows = {part.slot: part.row for part in everyone}
    samples: dict[int, dict[int, Any]] = {}
    for part in everyone:
        samples.setdefault(part.slot, {}).update(zip(part.ids, part.media, strict=True))
    mine = [slot for slot in sorted(samples) if slot % deal.processes == accelerator.process_index]
    return [Group(s, rows[s], sorted(samples[s]), [samples[s][i] for i in sorted(samples[s])]) for s in mine]


def share(
    accelerator: Accelerator, rollouts: Sequence[Rollout], wanted: Collection[int], conds: Sequence[Cond], waits: bool = False
) -> list[Rollout]:
    """All micro-batches of the wanted groups, in the order of the epoch; this process's own ones as they are.

    Latents go from process to process. What was computed from the condition is computed again for the others' ones; the condition itself
    is one for all micro-batches of a row.

    Args:
        waits: whether rollouts wait in main memory (`train.offload_samples_to_cpu`).
    """
    own = {r.ids: r for r in rollouts}
    everyone = gather_object([replace_all(r, "cpu", cond={}, memo=None, media=[]) for r in rollouts])
    needed = [r for _, r in sorted({r.ids: r for r in everyone if r.slot in wanted}.items())]  # a team's processes all have them
    home = "cpu" if waits else accelerator.device
    read = {r.row.id: r.cond for r in rollouts}
    for row in {r.row.id for r in needed} - read.keys():
        read[row] = moved(conds[row], home)
    return [own.get(r.ids) or replace_all(r, home, cond=read[r.row.id], memo=Memo()) for r in needed]


def replace_all(rollout: Rollout, device: torch.device | str, **others: Any) -> Rollout:
    """The rollout with its tensors on the device, and other things exchanged."""
    steps = [replace(s, **moved(vars(s), device)) for s in rollout.steps]
    new = replace(rollout, steps=steps, x0=moved(rollout.x0, device), **others)
    new.rewards, new.advantage = rollout.rewards, moved(rollout.advantage, device)
    return new
