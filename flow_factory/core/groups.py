"""Selection of the samples of a group, and of the groups of an epoch, to train on. A missing score is NaN."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from flow_factory.types import Rollout, Step


def best_and_worst(scores: Tensor) -> tuple[int, int] | None:
    """Indices of the highest and the lowest score of a group (n,), the first of equal ones; None if all are equal.

    A pair of equal scores has no preference to teach: Diffusion-DPO (arXiv 2311.12908) skips it. Missing scores are never paired.
    """
    known = scores.isfinite()
    high, low = scores.where(known, -torch.inf).max(0), scores.where(known, torch.inf).min(0)
    return (int(high.indices), int(low.indices)) if high.values > low.values else None


def best_of_n(scores: Tensor, keep: int) -> Tensor:
    """(keep,) ascending indices of the keep / 2 lowest and the keep / 2 highest scores of a group (n,) (DanceGRPO, arXiv 2505.07818).

    Equal scores keep their order. Missing scores count as the median, so they are kept last.

    Raises:
        ValueError: keep is odd, or not in 2..n.
    """
    if keep % 2 or not 2 <= keep <= len(scores):
        raise ValueError(f"best-of-n keeps as many of the best as of the worst: an even number from 2 to {len(scores)}, not {keep}")
    known = scores.isfinite()
    middle = scores[known].median() if known.any() else scores.new_zeros(())
    order = scores.where(known, middle).argsort(stable=True)
    return torch.cat([order[: keep // 2], order[-(keep // 2) :]]).sort().values


def informative(advantage: Tensor, multiple: int = 1) -> Tensor:
    """Ascending indices of the groups (G, n) to keep: those with an advantage other than 0, and as many others as `multiple` needs.

    A group with equal scores has no policy gradient, only its share of the mean and of a KL term. The first of these groups fill up the
    number to a multiple of `multiple`, for processes or micro-batches; flow_grpo draws them. Empty if no group has an advantage.

    Raises:
        ValueError: G is not a multiple of `multiple`.
    """
    if len(advantage) % multiple:
        raise ValueError(f"{len(advantage)} groups are no multiple of {multiple}: they cannot be filled up to one")
    useful = (advantage != 0).any(1)
    count = -(-int(useful.sum()) // multiple) * multiple
    return (~useful).to(torch.uint8).argsort(stable=True)[:count].sort().values


def cut(rollout: Rollout, size: int) -> list[Rollout]:
    """Samples that were drawn together, split into micro-batches of `size`: views of their tensors."""
    n = len(rollout.ids)
    if n == size:
        return [rollout]
    return [_slice(rollout, slice(k, k + size)) for k in range(0, n, size)]


def _slice(rollout: Rollout, here: slice) -> Rollout:
    def step_of(step: Step) -> Step:
        return _of_samples(step, lambda name: getattr(step, name)[here])

    return replace(
        rollout,
        steps=[step_of(s) for s in rollout.steps],
        media=rollout.media[here],
        ids=rollout.ids[here],
        x0=None if rollout.x0 is None else rollout.x0[here],
        memo=type(rollout.memo)(),  # its results are for all samples
        frozen=defaultdict(dict),
        peers={},
    )


def _of_samples(step: Step, of: Callable[[str], Tensor]) -> Step:
    """The transition with the selected samples of every tensor field."""
    return replace(step, x=of("x"), x1=of("x1"), logp=of("logp"), mean=None if step.mean is None else of("mean"))


def pick(group: Sequence[Rollout], chosen: Sequence[int]) -> Rollout:
    """One micro-batch of selected samples of a group, by their indices. It has no images, because it is made after scoring."""
    first, size = group[0], len(group[0].ids)

    def rows(of: Callable[[Rollout], Tensor]) -> Tensor:
        return torch.stack([of(group[k // size])[k % size] for k in chosen])

    def step(index: int) -> Step:
        def joined(name: str) -> Tensor:
            return rows(lambda r: getattr(r.steps[index], name))

        return _of_samples(first.steps[index], joined)

    result = replace(
        first,
        steps=[step(index) for index in range(len(first.steps))],
        media=[],
        ids=tuple(group[k // size].ids[k % size] for k in chosen),
        x0=None if first.x0 is None else rows(lambda r: r.x0),  # type: ignore[arg-type, return-value]
        kl_weight=None if first.kl_weight is None else rows(lambda r: r.kl_weight),  # type: ignore[arg-type, return-value]
        memo=first.memo if len(chosen) == size else type(first.memo)(),  # its results are for another number of samples
        frozen=defaultdict(dict),
        peers={},
    )
    result.rewards, result.advantage = rows(lambda r: r.rewards), rows(lambda r: r.advantage)
    return result
