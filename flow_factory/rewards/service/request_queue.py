"""Takes requests, lets workers score them in batches over all clients, and keeps the answers for repeated requests."""

import asyncio
import hashlib
import logging
import math
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from flow_factory.config.service import ServerConfig
from flow_factory.rewards.service.metrics import Metrics
from flow_factory.rewards.service.workers import Answer, Worker, WorkerDied
from flow_factory.rewards.wire import Body

logger = logging.getLogger(__name__)
MEGA = 1_000_000
TRIES = 3
"""The most starts in a row of a process that dies before it is ready."""


class Refused(Exception):
    """A refused request: the status, a message, and for 503 the seconds until a retry."""

    def __init__(self, status: int, text: str, after: int | None = None):
        super().__init__(text)
        self.status, self.after = status, after


@dataclass
class Job:
    """A request that waits for its answer."""

    reward: str
    id: str
    body: Body
    samples: int
    mark: bytes
    """A hash of the reward and the body. Two requests with one id must have the same hash."""
    answer: "asyncio.Future[Answer]"


@dataclass
class RequestQueue:
    """The queue of one service. Requests are answered only while `run` is running."""

    config: ServerConfig
    workers: Sequence[Worker]
    metrics: Metrics = field(default_factory=Metrics)

    def __post_init__(self) -> None:
        self.rewards: dict[str, Any] = {}
        """The workers' descriptions of the rewards; empty until a worker is ready."""
        self.jobs: deque[Job] = deque()
        self.inside = self.waiting_bytes = self.arriving = 0
        """Requests whose scoring has not begun, their bytes, and those of them whose bodies are on their way."""
        self.pending: dict[str, Job] = {}
        """The requests without an answer, by id."""
        self.kept: OrderedDict[str, Job] = OrderedDict()
        """The last answered requests, by id."""
        self.changed = asyncio.Condition()
        self.seconds = 1.0
        """Moving mean of the seconds of a batch."""
        self.metrics.watch(lambda: self.inside, lambda: self.waiting_bytes)

    def require_ready(self) -> None:
        """Raises:
        Refused: no worker has loaded its rewards yet.
        """
        if not self.rewards:
            raise Refused(503, "the rewards are being loaded", 2)

    def after(self) -> int:
        """Seconds after which there may be room for a client's request."""
        return max(1, min(60, math.ceil(self.seconds * len(self.jobs) / max(1, len(self.workers)))))

    def require_room(self, reward: str, length: int) -> None:
        """Raises:
        Refused: no such reward, a body of so many bytes is too long, or too many wait.
        """
        self.require_ready()
        if reward not in self.rewards:
            raise Refused(404, f"no reward {reward!r}; there are {', '.join(self.rewards)}")
        if length > self.config.max_body_mb * MEGA:
            raise Refused(413, f"a body of more than {self.config.max_body_mb} MB (server.max_body_mb)")
        if self.inside >= self.config.max_queue or (self.inside and self.waiting_bytes + length > self.config.max_queue_mb * MEGA):
            raise Refused(503, f"the queue is full: {self.inside} requests are waiting", self.after())

    @contextmanager
    def room(self, reward: str, length: int) -> Iterator[None]:
        """Reserves a place in the queue while a body of this many bytes arrives. `submit` inside takes the place."""
        self.require_room(reward, length)
        self.inside, self.arriving, self.waiting_bytes = self.inside + 1, self.arriving + 1, self.waiting_bytes + length
        try:
            yield
        finally:
            self.inside, self.arriving, self.waiting_bytes = self.inside - 1, self.arriving - 1, self.waiting_bytes - length

    async def submit(self, reward: str, id: str, body: Body, samples: int) -> "asyncio.Future[Answer]":
        """What will be the answer to a request; that of an earlier one of the same id and content where there is one.

        Raises:
            Refused: an earlier one of the same id had another content.
        """
        loop = asyncio.get_running_loop()
        mark = await loop.run_in_executor(None, fingerprint, reward, body)
        if id and (known := self.pending.get(id) or self.kept.get(id)) is not None:
            if known.mark != mark:
                raise Refused(409, f"the id {id!r} belongs to another request")
            self.metrics.repeated.inc()
            return known.answer
        job = Job(reward, id, body, samples, mark, loop.create_future())
        if id:
            self.pending[id] = job
        self.jobs.append(job)
        self.inside, self.waiting_bytes = self.inside + 1, self.waiting_bytes + len(body.content)
        async with self.changed:
            self.changed.notify_all()
        return job.answer

    def _taken(self, job: Job) -> Job:
        self.inside, self.waiting_bytes = self.inside - 1, self.waiting_bytes - len(job.body.content)
        return job

    async def _batch(self) -> list[Job]:
        """The next requests of one reward: as many as fill one call; for a groupwise reward, one."""
        async with self.changed:
            await self.changed.wait_for(lambda: self.jobs)
            first = self._taken(self.jobs.popleft())
            batch, about = [first], self.rewards[first.reward]
            loop = asyncio.get_running_loop()
            ends = loop.time() + self.config.max_wait_ms / 1000
            while not about["groupwise"] and (room := about["batch_size"] - sum(job.samples for job in batch)) > 0:
                more = next((job for job in self.jobs if job.reward == first.reward and job.samples <= room), None)
                if more is not None:
                    self.jobs.remove(more)
                    batch.append(self._taken(more))
                elif not self.arriving or not await self._change(ends - loop.time()):
                    break
        return batch

    async def _change(self, seconds: float) -> bool:
        """Waits for another request, and returns whether one came."""
        try:
            await asyncio.wait_for(self.changed.wait(), max(seconds, 0))
        except asyncio.TimeoutError:
            return False
        return True

    async def run(self) -> None:
        """Starts the workers and feeds them, until it is cancelled.

        Raises:
            UserError: the rewards do not load, or a worker dies again and again.
        """
        try:
            await asyncio.gather(*(self._serve(worker) for worker in self.workers))
        finally:
            for worker in self.workers:
                worker.stop()

    async def _serve(self, worker: Worker) -> None:
        await self._start(worker)
        loop = asyncio.get_running_loop()
        while True:
            jobs, died = await self._batch(), False
            begun = loop.time()
            try:
                answers = await worker.score(jobs[0].reward, [job.body for job in jobs])
            except WorkerDied as error:
                logger.error("%s; it is restarted", error)
                answers, died = [(500, {"error": str(error)})] * len(jobs), True
            for job, answer in zip(jobs, answers, strict=True):
                self._give(job, answer)
            self.seconds += 0.2 * (loop.time() - begun - self.seconds)
            self.metrics.batch(jobs[0].reward, sum(job.samples for job in jobs), loop.time() - begun)
            if died:
                self.metrics.workers.dec()
                await self._start(worker)

    async def _start(self, worker: Worker) -> None:
        for left in reversed(range(TRIES)):
            try:
                self.rewards = self.rewards | await worker.start()
            except WorkerDied:
                if not left:
                    raise
            else:
                self.metrics.workers.inc()
                return

    def _give(self, job: Job, answer: Answer) -> None:
        status, content = answer
        if status == 200 and job.id and content.get("id") != job.id:
            status, content = 400, {"error": f"the header Idempotency-Key is {job.id!r}, and the request's id {content.get('id')!r}"}
        self.pending.pop(job.id, None)
        if status == 200 and job.id:  # a failure is not kept: the next try is another
            self.kept[job.id] = job
            if len(self.kept) > self.config.max_answers:
                self.kept.popitem(last=False)
        job.body = Body("", b"")
        job.answer.set_result((status, content))


def fingerprint(reward: str, body: Body) -> bytes:
    """A hash of the content of a request."""
    known = hashlib.blake2b(f"{reward}\0{body.kind}\0".encode(), digest_size=16)
    known.update(body.content)  # which lets go of Python's lock
    return known.digest()
