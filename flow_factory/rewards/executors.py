"""Threads of rewards with `async_reward`, which run during the sampling. Each loaded reward has its own."""

import atexit
import contextvars
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from queue import SimpleQueue
from typing import Any

import torch

from flow_factory.rewards.isolation import surroundings
from flow_factory.rewards.loading import LoadedReward

AHEAD = 2
"""The largest number of unfinished calls for each thread of a reward. Beyond it the sampling waits."""
PATIENCE = 5.0
"""Seconds for which the exit of the program waits for running calls: one that returns after Python's shutdown aborts the process."""


class RewardExecutor:
    """The threads of one reward. They run its calls in order, and end with the program.

    Args:
        workers: the number of simultaneous calls.
        device: the device of the reward. On a GPU each thread has its own stream.
    """

    def __init__(self, workers: int, device: torch.device):
        self.workers, self.device = workers, device
        self._queue: SimpleQueue[tuple[Future[Any], Callable[[], None]]] = SimpleQueue()
        self._futures: list[Future[Any]] = []
        self._threads = 0
        _executors.add(self)

    def submit(self, call: Callable[[], Any]) -> Future[Any]:
        """The future of the call. It runs with torch's state and the context variables of the caller."""
        future: Future[Any] = Future()
        inside, variables = surroundings(), contextvars.copy_context()
        self._queue.put((future, lambda: variables.run(_answer, future, inside, call)))
        self._futures = [*self.unfinished, future]
        if self._threads < self.workers:
            self._threads += 1
            threading.Thread(target=self._work, name="reward beside", daemon=True).start()
        return future

    @property
    def unfinished(self) -> list[Future[Any]]:
        """The calls that are waiting or running."""
        return [future for future in self._futures if not future.done()]

    @property
    def under_way(self) -> bool:
        """Whether a call is running."""
        return any(future.running() for future in self._futures)

    def drop(self) -> None:
        """Cancels the waiting calls."""
        for future in self._futures:
            future.cancel()

    def _work(self) -> None:
        with ExitStack() as stack:
            if self.device.type == "cuda":
                stream = torch.cuda.Stream(self.device)
                stream.wait_stream(torch.cuda.default_stream(self.device))  # so that the weights are loaded
                stack.enter_context(torch.cuda.stream(stream))
            while True:
                self._next()

    def _next(self) -> None:
        """A separate function, so that a waiting thread holds no images."""
        future, run = self._queue.get()
        if future.set_running_or_notify_cancel():
            run()


def _answer(future: Future[Any], inside: Callable[[], ExitStack], call: Callable[[], Any]) -> None:
    try:
        with inside():
            result = call()
    except BaseException as error:  # raised where the answer is taken
        future.set_exception(error)
    else:
        future.set_result(result)


def answered(value: Any) -> Future[Any]:
    """The future of a finished call."""
    future: Future[Any] = Future()
    future.set_result(value)
    return future


def has_answer(future: Future[Any]) -> bool:
    """Whether the call has finished without an error."""
    return future.done() and not future.cancelled() and future.exception() is None


def executors_of(rewards: Sequence[LoadedReward]) -> dict[int, RewardExecutor]:
    """Id of the reward's model -> its executor.

    A model that several entries share is asynchronous if any entry is, with the largest number of workers.
    """
    shared: dict[int, list[LoadedReward]] = {}
    for reward in rewards:
        shared.setdefault(id(reward.model), []).append(reward)
    return {
        key: RewardExecutor(max(j.config.num_workers for j in entries), entries[0].model.device)
        for key, entries in shared.items()
        if any(j.config.async_reward for j in entries)
    }


_executors: weakref.WeakSet[RewardExecutor] = weakref.WeakSet()


@atexit.register
def _rest() -> None:
    until = time.monotonic() + PATIENCE
    for executor in _executors:
        executor.drop()
    while any(executor.under_way for executor in _executors) and time.monotonic() < until:
        time.sleep(0.01)
