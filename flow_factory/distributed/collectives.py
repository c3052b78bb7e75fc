"""Exchange of small values between processes."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from pickle import dumps, loads
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor

from flow_factory.config.plan import Deal
from flow_factory.distributed.barriers import Work
from flow_factory.utils.errors import FailedElsewhere, UserError, of_all
from flow_factory.utils.signals import ELSEWHERE, Interrupt, Interrupted

Answer = TypeVar("Answer")
Item = TypeVar("Item")


def gather_groups(accelerator: Accelerator, deal: Deal, mine: Tensor) -> Tensor:
    """(micro-batches of this process, n, ...) of every process -> (groups, samples, ...) in the order of the epoch, on the CPU.

    The same order for any number of processes keeps sums over groups the same to the bit.
    """
    everyone = accelerator.gather(mine.to(accelerator.device)).cpu()
    out = torch.empty(deal.groups, deal.batches, *mine.shape[1:], dtype=mine.dtype)
    for process, theirs in enumerate(everyone.chunk(deal.processes)):
        if deal.leads(process):
            for (group, k), values in zip(deal.of(process), theirs, strict=True):
                out[group, k] = values
    return out.flatten(1, 2)


def mean_over_ranks(accelerator: Accelerator, values: Mapping[str, Tensor]) -> dict[str, float]:
    """Mean of each 0-dim value over the processes."""
    stacked = torch.stack([v.float().to(accelerator.device) for v in values.values()])
    means = accelerator.reduce(stacked, "mean").tolist()
    return dict(zip(values, means, strict=True))


def most_of_ranks(accelerator: Accelerator, count: int) -> int:
    """The largest of the processes' counts; told over the CPU, so that nothing waits for the device."""
    told = torch.tensor(count)
    if accelerator.num_processes > 1:
        dist.all_reduce(told, dist.ReduceOp.MAX)
    return int(told)


def agree(accelerator: Accelerator, interrupt: Interrupt) -> None:
    """To be called by all processes at the same place; nothing waits for the device.

    Raises:
        Interrupted: on all of them, if a signal has come to any.
    """
    all_or_none(accelerator, interrupt, lambda: None)


def in_step(accelerator: Accelerator, interrupt: Interrupt, items: Iterable[Item], count: int) -> Iterator[Item]:
    """The items one by one, of which each process may have another number; after each all agree on whether to stop.

    Args:
        count: how many they are here.

    Raises:
        Interrupted: see `agree`.
    """
    most = most_of_ranks(accelerator, count)
    for item in items:
        yield item
        agree(accelerator, interrupt)
    for _ in range(most - count):
        agree(accelerator, interrupt)


def exchange(accelerator: Accelerator, parts: Mapping[int, Any]) -> dict[int, Any]:
    """Of each process what it has for this one, by its number; from one to the other, so that nobody has what is not meant for it.

    All must come here. Nothing is told of an empty part.

    Args:
        parts: by the number of the process that they are for.
    """
    me, count = accelerator.process_index, accelerator.num_processes
    mine = {me: parts[me]} if parts.get(me) else {}
    if count == 1:
        return mine
    sent = {to: torch.frombuffer(bytearray(dumps(part)), dtype=torch.uint8) for to, part in parts.items() if part and to != me}
    sizes = torch.zeros(count, count, dtype=torch.int64)
    for to, data in sent.items():
        sizes[me, to] = len(data)
    dist.all_reduce(sizes)
    got = {of: torch.empty(int(size), dtype=torch.uint8) for of, size in enumerate(sizes[:, me]) if size}
    for work in [dist.irecv(data, of) for of, data in got.items()] + [dist.isend(data, to) for to, data in sent.items()]:
        if work is not None:  # which is for processes that are not of the group
            work.wait()
    return mine | {of: loads(data.numpy().data) for of, data in got.items()}


def all_or_none(accelerator: Accelerator, interrupt: Interrupt, call: Callable[[], Answer], at_once: bool = True) -> Answer:
    """What the call returns, where it goes well on every process; else all raise, and stand at the same place. All must come here.

    A signal ends the call at once: it may hang, and nothing remains of it. No process may talk to others in it. It may take as long as it
    takes: the others wait for it as long as it is alive. Where it is stopped or fails on one of them, the others' calls hear of it by
    `Interrupt.look`.

    Args:
        at_once: false for a call that looks for signals itself.

    Raises:
        UserError: what the call raised here; or `FailedElsewhere`.
        Interrupted: a signal has come to any process.
    """
    trouble: UserError | Interrupted | None = None
    work = Work("work of its own")
    try:
        with interrupt.hearing(work.asked), interrupt.at_once() if at_once else nullcontext():
            answer = call()
    except (UserError, Interrupted) as error:
        trouble = error
        work.stop()
    work.wait(lambda: interrupt.signal is not None)
    try:
        interrupt.check()
    except Interrupted as error:
        trouble = trouble or error
    flags = [isinstance(trouble, UserError), isinstance(trouble, Interrupted)]
    failed, stopped = any_of_ranks(flags) if accelerator.num_processes > 1 else flags
    if failed:
        raise of_all(trouble if isinstance(trouble, UserError) else FailedElsewhere("another process has failed"))
    if stopped:
        raise trouble or Interrupted(ELSEWHERE)
    return answer


def on_any_rank(accelerator: Accelerator, flag: bool) -> bool:
    """Whether it is set on any process; told as `any_of_ranks` tells it."""
    return any_of_ranks([flag])[0] if accelerator.num_processes > 1 else flag


def any_of_ranks(flags: list[bool]) -> list[bool]:
    """Each flag, set where any process has set it; told over the CPU, so that nothing waits for the device."""
    told = torch.tensor(flags, dtype=torch.uint8)
    dist.all_reduce(told, dist.ReduceOp.MAX)
    return told.bool().tolist()
