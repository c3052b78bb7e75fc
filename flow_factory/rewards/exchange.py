"""HTTP requests of rewards, in the event loop of one thread: a timeout holds whatever a server does, and an interrupt ends the waiting."""

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import httpx

Result = TypeVar("Result")


class Wrong(ValueError):
    """The answer does not match the request. The message has the reason."""


@lru_cache(maxsize=1)
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="remote rewards", daemon=True).start()
    return loop


def done(work: Coroutine[Any, Any, Result]) -> Result:
    """The result of the coroutine. An interrupt cancels it."""
    future = asyncio.run_coroutine_threadsafe(work, _loop())
    try:
        return future.result()
    finally:
        future.cancel()


async def together(requests: Sequence[Callable[[], Coroutine[Any, Any, Result]]], room: asyncio.Semaphore) -> list[Result]:
    """The results of the requests, each made when there is room. The first error cancels the others."""

    async def one(request: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        async with room:
            return await request()

    tasks = [asyncio.ensure_future(one(request)) for request in requests]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


class HTTPClient:
    """Requests to one server, over connections that are kept. `together` limits their number.

    httpcore 1.0 keeps the connection of a request that is cancelled as it opens, and never uses it again; so after a timeout the next
    requests use a new pool of connections, and the old one is closed after its last request.
    """

    def __init__(self, url: str, headers: dict[str, str]):
        self.secure = url.startswith("https")  # the certificates of an http address would be read for nothing
        self.headers = headers
        self._pool = self._new_pool()
        self._requests: Counter[httpx.AsyncClient] = Counter()

    def _new_pool(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(timeout=None, limits=httpx.Limits(), headers=self.headers, verify=self.secure)

    async def request(self, method: str, url: str, most: int, limit: float, **more: Any) -> tuple[int, bytes, httpx.Headers]:
        """(status, content, headers) of the answer.

        Raises:
            Wrong: it is longer than `most` bytes.
            asyncio.TimeoutError: it has not come as a whole after `limit` seconds.
        """
        pool = self._pool
        self._requests[pool] += 1
        try:
            return await asyncio.wait_for(_whole(pool, method, url, most, more), limit)
        except (asyncio.TimeoutError, asyncio.CancelledError):
            if pool is self._pool:
                self._pool = self._new_pool()
            raise
        finally:
            self._requests[pool] -= 1
            if pool is not self._pool and not self._requests[pool]:
                del self._requests[pool]
                await pool.aclose()


async def _whole(pool: httpx.AsyncClient, method: str, url: str, most: int, more: dict[str, Any]) -> tuple[int, bytes, httpx.Headers]:
    async with pool.stream(method, url, **more) as answer:
        read = bytearray()
        async for chunk in answer.aiter_bytes():
            read += chunk
            if len(read) > most:
                raise Wrong(f"answers more than {most} bytes")
        return answer.status_code, bytes(read), answer.headers
