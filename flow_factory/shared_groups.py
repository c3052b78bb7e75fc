"""Groups that several processes share, for there are fewer of them than processes: what must see a whole group gets it here."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from flow_factory.config.plan import Deal
from flow_factory.distributed import all_or_none
from flow_factory.frugal import moved
from flow_factory.interrupt import Interrupt
from flow_factory.memo import Memo
from flow_factory.rewards.scoring import RewardSet
from flow_factory.types import Cond, Rollout, Row

Score = Callable[[Sequence[Row], Sequence[Sequence[Any]]], list[Tensor]]
"""Rows and the media of their groups -> the scores of each group, (n, R)."""


def score_groups(
    accelerator: Accelerator,
    interrupt: Interrupt,
    deal: Deal,
    rewards: RewardSet,
    groups: Sequence[Sequence[Rollout]],
    media: Sequence[Sequence[Any]],
) -> list[Tensor]:
    """Scores of this process's samples of each group, (n, R); NaN on those of a team whose first process has them.

    Raises:
        UserError, Interrupted: see `all_or_none`.
    """

    def score(rows: Sequence[Row], media: Sequence[Sequence[Any]]) -> list[Tensor]:
        return all_or_none(accelerator, interrupt, lambda: rewards.score(rows, media))

    if rewards.groupwise and not deal.whole:
        return score_shared(accelerator, deal, score, groups, media)
    if deal.leads(accelerator.process_index):
        return score([g[0].row for g in groups], media)
    return all_or_none(accelerator, interrupt, lambda: [torch.full((len(m), len(rewards.names)), torch.nan) for m in media])


def score_shared(
    accelerator: Accelerator, deal: Deal, score: Score, groups: Sequence[Sequence[Rollout]], media: Sequence[Sequence[Any]]
) -> list[Tensor]:
    """Scores of this process's samples of each group, (n, R), of rewards that see whole groups.

    The one place where pictures go from process to process: each group is scored on one of them, and the scores go back.
    """
    everyone: list[tuple[int, Row, tuple[int, ...], Sequence[Any]]] = gather_object(
        [(g[0].slot, g[0].row, tuple(i for r in g for i in r.ids), m) for g, m in zip(groups, media, strict=True)]
    )
    whole: dict[int, dict[int, Any]] = {}
    rows = {slot: row for slot, row, _, _ in everyone}
    for slot, _, ids, pictures in everyone:
        whole.setdefault(slot, {}).update(zip(ids, pictures, strict=True))
    mine = [slot for slot in sorted(whole) if slot % deal.processes == accelerator.process_index]
    pictures_of = [[whole[s][i] for i in sorted(whole[s])] for s in mine]
    scores = score([rows[s] for s in mine], pictures_of)
    known = {i: row for part in gather_object([dict(zip(sorted(whole[s]), t, strict=True)) for s, t in zip(mine, scores, strict=True)])
             for i, row in part.items()}  # fmt: skip
    return [torch.stack([known[i] for r in group for i in r.ids]) for group in groups]


def share(accelerator: Accelerator, rollouts: Sequence[Rollout], wanted: Collection[int], conds: Sequence[Cond]) -> list[Rollout]:
    """All micro-batches of the wanted groups, in the order of the epoch; this process's own ones as they are.

    Latents go from process to process. What was computed from the condition is computed again for the others' ones.
    """
    own = {r.ids: r for r in rollouts}
    everyone = gather_object([replace_all(r, "cpu", cond={}, memo=None, media=[]) for r in rollouts])
    device = accelerator.device
    needed = [r for _, r in sorted({r.ids: r for r in everyone if r.slot in wanted}.items())]  # a team's processes all have them
    return [own.get(r.ids) or replace_all(r, device, cond=moved(conds[r.row.id], device), memo=Memo()) for r in needed]


def replace_all(rollout: Rollout, device: torch.device | str, **others: Any) -> Rollout:
    """The rollout with its tensors on the device, and other things exchanged."""
    steps = [replace(s, **moved(vars(s), device)) for s in rollout.steps]
    new = replace(rollout, steps=steps, x0=moved(rollout.x0, device), **others)
    new.rewards, new.advantage = rollout.rewards, moved(rollout.advantage, device)
    return new
