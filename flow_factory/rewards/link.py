"""The connection to rewards on a server, with repetitions and a deadline. An answer must match its request."""

import asyncio
import json
import threading
import time
from collections.abc import Coroutine, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import httpx

from flow_factory.hparams import RewardArguments
from flow_factory.rewards.failures import HOPELESS, Failed, address, number, pause, why, worth_again
from flow_factory.rewards.wire import Body
from flow_factory.utils.errors import RewardError, UserError
from flow_factory.utils.user_code import short

Result = TypeVar("Result")
Scores = list[float | None]
BUSY = 503
"""The status of a busy server. With Retry-After the request is repeated until the deadline."""
LARGEST = 3.4e38
"""The largest value of float32."""
SPARE, EACH = 65_536, 256
"""The largest size of an answer in bytes: a constant, and for each sample."""


class Wrong(ValueError):
    """The answer does not match the request. The message has the reason."""


@lru_cache(maxsize=1)
def _loop() -> asyncio.AbstractEventLoop:
    """The event loop of a separate thread, in which the timeout of a request holds whatever the server does."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="remote rewards", daemon=True).start()
    return loop


def _done(work: Coroutine[Any, Any, Result]) -> Result:
    """The result of the coroutine. An interrupt cancels it."""
    future = asyncio.run_coroutine_threadsafe(work, _loop())
    try:
        return future.result()
    finally:
        future.cancel()


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
        raise Wrong(f"answers {many} for {n} sample{'s' * (n != 1)}")
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
        headers = {"Authorization": f"Bearer {extra['token']}"} if extra.get("token") else {}
        limits = httpx.Limits(max_connections=self.concurrent, max_keepalive_connections=self.concurrent)
        secure = self.url.startswith("https")  # the certificates of an http address would be read for nothing
        self.client = httpx.AsyncClient(timeout=None, limits=limits, headers=headers, verify=secure)

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
                status, content, _ = await self._send("GET", path, None, SPARE)
                if status != BUSY or path != "/rewards" or time.monotonic() + pause(k) > ends:
                    return status, content
                await asyncio.sleep(pause(k))
                k += 1

        try:
            return _done(asyncio.wait_for(look(), self.timeout))
        except (httpx.HTTPError, asyncio.TimeoutError, Wrong) as error:
            reason = why(error) if isinstance(error, httpx.HTTPError) else short(error) or f"no answer in {self.timeout:g} s"
            line = f"reward {self.name!r}: server_url: {self.url} does not answer ({reason}); start the server first"
            raise UserError(line) from error

    def request(self, path: str, questions: Sequence[tuple[Body, str | None, int]]) -> list[Scores | Failed]:
        """The answers to several requests (body, id, samples), sent concurrently.

        Raises:
            RewardError: the server refuses all requests.
        """

        async def every() -> list[Scores | Failed]:
            return list(await asyncio.gather(*(self._request(path, *question) for question in questions)))

        return _done(every())

    async def _request(self, path: str, body: Body, id: str | None, n: int) -> Scores | Failed:
        """Sends one request. Repetitions have the same bytes and id, so that the server scores them once."""
        loop = asyncio.get_running_loop()
        ends, failed, k = loop.time() + self.deadline, Failed("no answer"), 0
        while k < self.tries and (left := ends - loop.time()) > 0:
            wait, limit = 0.0, min(self.timeout, left)
            try:
                status, content, wait = await asyncio.wait_for(self._send("POST", path, (body, id, n), SPARE + EACH * n), limit)
                if status == 200:
                    return scores_in(content, id, n)
                failed = self._refused(status, content)
                if not worth_again(status):
                    return failed
            except asyncio.TimeoutError:
                failed = Failed(f"{self.url} does not answer in {limit:.3g} s")
            except httpx.HTTPError as error:
                failed = Failed(f"{self.url}: {why(error)}")
            except Wrong as error:
                failed = Failed(f"{self.url} {error}")
            k += not wait
            await asyncio.sleep(min(pause(max(k, 1), wait), max(0.0, ends - loop.time())))
        return failed

    def _refused(self, status: int, content: bytes) -> Failed:
        message = f"{self.url} answers {status}: {short(content.decode(errors='replace'))}"
        if status in HOPELESS:
            raise RewardError(f"reward {self.name!r}: {message}")
        return Failed(message)

    async def _send(self, method: str, path: str, question: tuple[Body, str | None, int] | None, most: int) -> tuple[int, bytes, float]:
        """(status, content, seconds of Retry-After).

        Raises:
            Wrong: the answer is longer than `most` bytes.
        """
        headers, content = {}, None
        if question is not None:
            body, id, n = question
            content, headers = body.content, {"Content-Type": body.kind, "Samples": str(n)}
            headers |= {"Idempotency-Key": id} if id is not None else {}
        async with self.client.stream(method, self.url + path, content=content, headers=headers) as answer:
            read = bytearray()
            async for chunk in answer.aiter_bytes():
                read += chunk
                if len(read) > most:
                    raise Wrong(f"answers more than {most} bytes")
            after = answer.headers.get("Retry-After", "") if answer.status_code == BUSY else ""
            return answer.status_code, bytes(read), min(float(after), 60.0) if after.isdecimal() else 0.0
