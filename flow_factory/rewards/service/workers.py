"""Workers compute scores outside the event loop: a process for each device, or a thread in tests."""

import asyncio
import json
import multiprocessing
import signal
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any, Protocol

from flow_factory.rewards.wire import Body
from flow_factory.utils.errors import RunError, UserError

Answer = tuple[int, dict[str, Any]]
"""HTTP status, and the body; see `scorer.Reply`."""


class WorkerDied(RunError):
    """The process has died; the message says how."""


class Worker(Protocol):
    """Scores one batch at a time."""

    async def start(self) -> dict[str, Any]:
        """Loads the rewards; what `Scorer.describe` says of them.

        Raises:
            UserError: they do not load.
        """

    async def score(self, name: str, bodies: Sequence[Body]) -> list[Answer]:
        """A reply to each body.

        Raises:
            WorkerDied: see there; it can be started again.
        """

    def stop(self) -> None:
        """Stops the worker."""


class ThreadWorker:
    """A thread of this process.

    Args:
        scorer: a `scorer.Scorer`.
    """

    def __init__(self, scorer: Any):
        self.scorer, self.threads = scorer, ThreadPoolExecutor(1, "scorer")

    async def start(self) -> dict[str, Any]:
        return self.scorer.describe()

    async def score(self, name: str, bodies: Sequence[Body]) -> list[Answer]:
        return await asyncio.get_running_loop().run_in_executor(self.threads, self.scorer.score, name, bodies)

    def stop(self) -> None:
        self.threads.shutdown(wait=False)


class ProcessWorker:
    """A process of its own, so that neither what a reward does to Python's lock nor its death is the service's. It is told what to load by
    the path of the config, and talks in bytes and JSON: nothing is pickled but that path."""

    def __init__(self, path: str, overrides: Sequence[str], device: str):
        self.arguments = (path, tuple(overrides), device)
        self.device, self.threads = device, ThreadPoolExecutor(1, f"scorer on {device}")
        self.process: Any = None
        self.ours: Connection | None = None

    async def start(self) -> dict[str, Any]:
        return await asyncio.get_running_loop().run_in_executor(self.threads, self._start)

    async def score(self, name: str, bodies: Sequence[Body]) -> list[Answer]:
        return await asyncio.get_running_loop().run_in_executor(self.threads, self._score, name, bodies)

    def _start(self) -> dict[str, Any]:
        self.stop()
        context = multiprocessing.get_context("spawn")
        self.ours, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, *self.arguments), daemon=True, name=f"ff-reward {self.device}")
        self.process.start()
        theirs.close()
        message = self._receive()
        if "error" in message:
            raise (RunError if message["failed"] else UserError)(message["error"])
        return message

    def _score(self, name: str, bodies: Sequence[Body]) -> list[Answer]:
        assert self.ours is not None
        try:
            self.ours.send_bytes(json.dumps([name, [body.kind for body in bodies]]).encode())
            for body in bodies:
                self.ours.send_bytes(body.content)
        except OSError as error:
            raise self._death() from error
        return [(status, content) for status, content in self._receive()]

    def _receive(self) -> Any:
        assert self.ours is not None
        try:
            return json.loads(self.ours.recv_bytes())
        except (EOFError, OSError) as error:
            raise self._death() from error

    def _death(self) -> WorkerDied:
        self.process.join(10)
        code = self.process.exitcode
        how = "has ended" if code is None else f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        return WorkerDied(f"the process that scores on {self.device} {how}")

    def stop(self) -> None:
        if self.ours is not None:
            self.ours.close()
        if self.process is not None:
            self.process.kill()


def work(theirs: Connection, path: str, overrides: Sequence[str], device: str) -> None:
    """The main function of the process. It ends when the other end of the pipe is closed."""
    for number in (signal.SIGINT, signal.SIGTERM):  # for the service, which ends this process when all is answered
        signal.signal(number, signal.SIG_IGN)
    from flow_factory.utils.terminal import quiet_libraries

    quiet_libraries()
    try:
        from flow_factory.config.service import load_rewards_config
        from flow_factory.rewards.loading import arguments, require_devices, require_files
        from flow_factory.rewards.service.scorer import Scorer
        from flow_factory.utils.devices import require_device

        require_device("server.devices", device)
        entries = arguments(load_rewards_config(path, overrides).rewards)
        if device == "auto":
            require_devices(entries)
        require_files(entries, now=True)
        scorer = Scorer(entries, device)
    except UserError as error:
        theirs.send_bytes(json.dumps({"error": str(error), "failed": isinstance(error, RunError)}).encode())
        return
    theirs.send_bytes(json.dumps(scorer.describe()).encode())
    try:
        while True:
            name, kinds = json.loads(theirs.recv_bytes())
            replies = scorer.score(name, [Body(kind, theirs.recv_bytes()) for kind in kinds])
            theirs.send_bytes(json.dumps(replies).encode())
    except (EOFError, OSError):
        return
