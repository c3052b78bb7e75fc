"""The isolation of a reward's call: global state is restored after it, and it may have a time limit."""

import contextvars
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from flow_factory.utils.errors import RewardError
from flow_factory.utils.user_code import place


class _Process:
    """Process-wide state before the running calls. It is restored after the last of parallel calls, since each would restore another's."""

    def __init__(self) -> None:
        self.lock, self.calls = threading.Lock(), 0
        self.before: tuple[torch.dtype, Path] | None = None

    def enter(self) -> None:
        with self.lock:
            self.before = self.before or (torch.get_default_dtype(), Path.cwd())
            self.calls += 1

    def leave(self) -> None:
        with self.lock:
            self.calls -= 1
            if self.calls or self.before is None:
                return
            (dtype, folder), self.before = self.before, None
            if torch.get_default_dtype() is not dtype:
                torch.set_default_dtype(dtype)
            if Path.cwd() != folder:
                os.chdir(folder)


_process = _Process()


@contextmanager
def kept() -> Iterator[None]:
    """Restores the gradient mode, the default dtype and the current folder; for parallel calls, after the last one."""
    grad = torch.is_grad_enabled()
    _process.enter()
    try:
        yield
    finally:
        torch.set_grad_enabled(grad)
        _process.leave()


def within(seconds: float | None, call: Callable[[], Any], doing: str, module: str) -> Any:
    """The result of the call. With a limit it runs in a separate thread, which is abandoned after the limit.

    Raises:
        RewardError: it has not returned in time. The message begins with `doing` and has the place in its code.
    """
    if seconds is None:
        return call()
    ended, inside = threading.Event(), surroundings()
    outcome: list[tuple[Any, BaseException | None]] = []

    def work() -> None:
        try:
            with inside():
                outcome.append((call(), None))
        except BaseException as error:  # raised again below, in the thread that waits
            outcome.append((None, error))
        finally:
            ended.set()

    thread = threading.Thread(target=contextvars.copy_context().run, args=(work,), name="reward", daemon=True)
    thread.start()
    if not ended.wait(seconds):
        frame = sys._current_frames().get(thread.ident or 0)
        raise RewardError(f"{doing}: it took longer than its max_seconds: {seconds:g}{place(traceback.extract_stack(frame), module)}")
    answer, error = outcome[0]
    if error is not None:
        raise error
    return answer


def surroundings() -> Callable[[], ExitStack]:
    """A context with this thread's state of torch: gradients, inference mode, autocast, the current GPU."""
    grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    casts = [(kind, torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    gpu = torch.cuda.current_device() if torch.cuda.is_initialized() else None

    def enter() -> ExitStack:
        stack = ExitStack()
        if inference:
            stack.enter_context(torch.inference_mode())
        stack.enter_context(torch.set_grad_enabled(grad))
        for kind, dtype in casts:
            stack.enter_context(torch.autocast(kind, dtype))
        if gpu is not None:
            stack.enter_context(torch.cuda.device(gpu))
        return stack

    return enter
