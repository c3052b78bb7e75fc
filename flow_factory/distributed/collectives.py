"""The exchange of small values between processes."""

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

    The order is the same for any number of processes, so that sums over groups are equal to the bit.
    """
    everyone = accelerator.gather(mine.to(accelerator.device)).cpu()
    out = torch.empty(deal.groups, deal.batches, *mine.shape[1:], dtype=mine.dtype)
    for process, theirs in enumerate(everyone.chunk(deal.processes)):
        if deal.leads(process):
            for (group, k), values in zip(deal.of(process), theirs, strict=True):
                out[group, k] = values
    return out.flatten(1, 2)


def mean_over_ranks(accelerator: Accelerator, values: Mapping[str, Tensor]) -> dict[str, float]:
    """The mean of each 0-dim value over the processes."""
    stacked = torch.stack([v.float().to(accelerator.device) for v in values.values()])
    means = accelerator.reduce(stacked, "mean").tolist()
    return dict(zip(values, means, strict=True))


def max_over_ranks(accelerator: Accelerator, count: int) -> int:
    """The maximum of the processes' counts, exchanged on the CPU, so that nothing waits for the device."""
    maximum = torch.tensor(count)
    if accelerator.num_processes > 1:
        dist.all_reduce(maximum, dist.ReduceOp.MAX)
    return int(maximum)


def agree(accelerator: Accelerator, interrupt: Interrupt) -> None:
    """Agrees on whether to stop. All processes call this at the same place. It does not wait for the device.

    Raises:
        Interrupted: on all processes, if any has got a signal.
    """
    all_or_none(accelerator, interrupt, lambda: None)


def in_step(accelerator: Accelerator, interrupt: Interrupt, items: Iterable[Item], count: int) -> Iterator[Item]:
    """The items one by one. After each item all processes agree on whether to stop. Their numbers of items may differ.

    Args:
        count: the number of items of this process.

    Raises:
        Interrupted: see `agree`.
    """
    most = max_over_ranks(accelerator, count)
    for item in items:
        yield item
        agree(accelerator, interrupt)
    for _ in range(most - count):
        agree(accelerator, interrupt)


def exchange(accelerator: Accelerator, parts: Mapping[int, Any]) -> dict[int, Any]:
    """Sends an object to each other process, point to point, and returns the received ones by rank. All processes call this together.

    Empty parts are not sent.

    Args:
        parts: rank of the receiver -> object.
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
        if work is not None:  # it is None for processes outside of the group
            work.wait()
    return mine | {of: loads(data.numpy().data) for of, data in got.items()}


def all_or_none(accelerator: Accelerator, interrupt: Interrupt, call: Callable[[], Answer], at_once: bool = True) -> Answer:
    """The result of the call if it succeeds on every process. Otherwise all processes raise. All call this together.

    The call must not communicate with other processes. It may take any time: the others wait as long as the process is alive. A signal
    ends it at once, because it may block, and its result is dropped. If it is stopped or fails on one process, the calls of the others
    learn of it by `Interrupt.look`.

    Args:
        at_once: False for a call that checks for signals itself.

    Raises:
        UserError: the error of the call; or `FailedElsewhere`.
        Interrupted: any process got a signal.
    """
    trouble: UserError | Interrupted | None = None
    work = Work("work of its own")
    try:
        with interrupt.watching_others(work.stop_requested), interrupt.at_once() if at_once else nullcontext():
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
    """Whether the flag is set on any process, exchanged as in `any_of_ranks`."""
    return any_of_ranks([flag])[0] if accelerator.num_processes > 1 else flag


def any_of_ranks(flags: list[bool]) -> list[bool]:
    """The elementwise OR of the processes' flags, exchanged on the CPU, so that nothing waits for the device."""
    combined = torch.tensor(flags, dtype=torch.uint8)
    dist.all_reduce(combined, dist.ReduceOp.MAX)
    return combined.bool().tolist()
