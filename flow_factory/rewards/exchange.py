"""HTTP requests of rewards, in the event loop of one thread: a timeout holds whatever a server does, and an interrupt ends the waiting."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import httpx

Result = TypeVar("Result")
OPENING = 0.9
"""The share of a request's time within which its connection must open: httpx ends that itself, and leaves nothing behind."""


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


def client_of(url: str, connections: int, headers: dict[str, str]) -> httpx.AsyncClient:
    """A client for `answer_to`, which keeps up to so many connections.

    It may open more: a connection whose opening is cancelled stays in httpcore's pool, and would be counted for ever.
    """
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=connections)
    secure = url.startswith("https")  # the certificates of an http address would be read for nothing
    return httpx.AsyncClient(limits=limits, headers=headers, verify=secure)


async def answer_to(
    client: httpx.AsyncClient, method: str, url: str, most: int, limit: float, **request: Any
) -> tuple[int, bytes, httpx.Headers]:
    """(status, content, headers).

    Raises:
        Wrong: the answer is longer than `most` bytes.
        asyncio.TimeoutError: it has not come as a whole after `limit` seconds.
    """
    timeout = httpx.Timeout(None, connect=OPENING * limit)

    async def whole() -> tuple[int, bytes, httpx.Headers]:
        async with client.stream(method, url, timeout=timeout, **request) as answer:
            read = bytearray()
            async for chunk in answer.aiter_bytes():
                read += chunk
                if len(read) > most:
                    raise Wrong(f"answers more than {most} bytes")
            return answer.status_code, bytes(read), answer.headers

    try:
        return await asyncio.wait_for(whole(), limit)
    except httpx.ConnectTimeout as error:
        raise asyncio.TimeoutError from error
