"""The connection to rewards on a server, with repetitions and a deadline. An answer must match its request."""

import asyncio
import json
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import httpx

from flow_factory.hparams import RewardArguments
from flow_factory.rewards.exchange import HTTPClient, Wrong, done, together
from flow_factory.rewards.failures import Failed, address, does_not_answer, number, pause, refused, why, worth_again
from flow_factory.rewards.wire import Body
from flow_factory.utils.counting import counted
from flow_factory.utils.errors import UserError
from flow_factory.utils.user_code import short

Scores = list[float | None]
BUSY = 503
"""The status of a busy server. With Retry-After the request is repeated until the deadline."""
LARGEST = 3.4e38
"""The largest value of float32."""
SPARE, EACH = 65_536, 256
"""The largest size of an answer in bytes: a constant, and for each sample."""


def scores_in(content: bytes, id: str | None, n: int) -> Scores:
    """The scores of an answer: {"id", "scores"}, or in the older protocol {"rewards"}.

    Raises:
        Wrong: it is not such JSON, with this id and length, and a finite number or null for each sample.
    """
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Wrong(f"answers with something that is not JSON: {short(content[:60])}") from error
    if not isinstance(answer, dict):
        raise Wrong(f"answers with something that is not a JSON object: {short(content[:60])}")
    if id is not None and answer.get("id") != id:
        raise Wrong(f"answers another request: {short(answer.get('id'))} instead of {id}")
    if id is None and answer.get("error"):
        raise Wrong(f"answers an error: {short(answer['error'])}")
    scores = answer.get("scores" if id is not None else "rewards")
    if not isinstance(scores, list) or len(scores) != n:
        many = f"{len(scores)} scores" if isinstance(scores, list) else "no list of scores"
        raise Wrong(f"answers {many} for {counted(n, 'sample')}")
    return [_number(score, k) for k, score in enumerate(scores)]


def _number(score: Any, k: int) -> float | None:
    if score is None:
        return None
    if isinstance(score, bool) or not isinstance(score, int | float) or not abs(score) <= LARGEST:
        raise Wrong(f"answers a score that is not a finite number: {short(repr(score))[:40]} at {k}")
    return float(score)


class Link:
    """The connection to one server; see `remote.RemoteReward` for the keys.

    Raises:
        UserError: a key is wrong.
    """

    def __init__(self, config: RewardArguments):
        extra = config.extra_kwargs
        self.name = config.name
        if "server_url" not in extra:
            raise UserError(f"reward {config.name!r}: server_url is missing: write the server's address, such as http://gpu-host:8100")
        self.url = address(config, "server_url", "", "http://gpu-host:8100")
        self.tries = int(number(config, "retry_attempts", 5, 1))
        self.timeout = number(config, "timeout", 120, 0.001)
        self.deadline = number(config, "deadline", 600, 0.001)
        self.concurrent = int(number(config, "max_concurrent", 4, 1))
        self.room = asyncio.Semaphore(self.concurrent)
        headers = {"Authorization": f"Bearer {extra['token']}"} if extra.get("token") else {}
        self.client = HTTPClient(self.url, headers)

    def describe(self) -> dict[str, Any] | None:
        """The server's description of its rewards by name; None with the older protocol.

        Raises:
            UserError: the server does not answer, refuses the token, or does not serve rewards.
        """
        status, content = self._look("/rewards")
        if status == BUSY:
            raise UserError(f"reward {self.name!r}: server_url: {self.url} is not ready: {short(content.decode(errors='replace'))}")
        if status in (401, 403):
            raise UserError(f"reward {self.name!r}: token: {self.url} refuses it ({status})")
        if status == 404 and self._look("/health")[0] == 200:
            return None
        try:
            described = json.loads(content)["rewards"] if status == 200 else None
        except (ValueError, LookupError, TypeError):
            described = None
        if not isinstance(described, dict) or not all(isinstance(one, dict) for one in described.values()):
            raise UserError(f"reward {self.name!r}: server_url: {self.url} is not a reward server: GET /rewards answers {status}")
        return described

    def _look(self, path: str) -> tuple[int, bytes]:
        """GET: (status, content). It is repeated while the server loads its rewards, until `timeout`."""

        async def look() -> tuple[int, bytes]:
            ends, k = time.monotonic() + self.timeout, 1
            while True:
                status, content, _ = await self._send("GET", path, None, SPARE, self.timeout)
                if status != BUSY or path != "/rewards" or time.monotonic() + pause(k) > ends:
                    return status, content
                await asyncio.sleep(pause(k))
                k += 1

        try:
            return done(asyncio.wait_for(look(), self.timeout))
        except (httpx.HTTPError, asyncio.TimeoutError, Wrong) as error:
            raise does_not_answer(self.name, "server_url", self.url, error, self.timeout) from error

    def request(self, path: str, questions: Sequence[tuple[Body, str | None, int]]) -> list[Scores | Failed]:
        """The answers to several requests (body, id, samples), sent concurrently.

        Raises:
            RewardError: the server refuses all requests.
        """
        ends = time.monotonic() + self.deadline
        return done(together([partial(self._request, path, ends, *question) for question in questions], self.room))

    async def _request(self, path: str, ends: float, body: Body, id: str | None, n: int) -> Scores | Failed:
        """Sends one request, until `ends` of the monotonic clock. Repetitions have the same bytes and id: the server scores them once."""
        failed, k = Failed(f"{self.url}: the request had no place among max_concurrent others in {self.deadline:.3g} s"), 0
        while k < self.tries and (left := ends - time.monotonic()) > 0:
            wait, limit = 0.0, min(self.timeout, left)
            try:
                status, content, wait = await self._send("POST", path, (body, id, n), SPARE + EACH * n, limit)
                if status == 200:
                    return scores_in(content, id, n)
                failed = refused(self.name, self.url, status, content)
                if not worth_again(status):
                    return failed
            except asyncio.TimeoutError:
                failed = Failed(f"{self.url} does not answer in {limit:.3g} s")
            except httpx.HTTPError as error:
                failed = Failed(f"{self.url}: {why(error)}")
            except Wrong as error:
                failed = Failed(f"{self.url} {error}")
            k += not wait
            await asyncio.sleep(min(pause(max(k, 1), wait), max(0.0, ends - time.monotonic())))
        return failed

    async def _send(
        self, method: str, path: str, question: tuple[Body, str | None, int] | None, most: int, limit: float
    ) -> tuple[int, bytes, float]:
        """(status, content, seconds of Retry-After). For the errors see `HTTPClient.request`."""
        headers, content = {}, None
        if question is not None:
            body, id, n = question
            content, headers = body.content, {"Content-Type": body.kind, "Samples": str(n)}
            headers |= {"Idempotency-Key": id} if id is not None else {}
        status, read, received = await self.client.request(method, self.url + path, most, limit, content=content, headers=headers)
        after = received.get("Retry-After", "") if status == BUSY else ""
        return status, read, min(float(after), 60.0) if after.isdecimal() else 0.0
