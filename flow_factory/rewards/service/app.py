"""The HTTP endpoints of the service: scores, the older public protocol, health, readiness, metrics. They decode no picture."""

import asyncio
import hmac
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response

from flow_factory.rewards.service.request_queue import MEGA, Refused, RequestQueue
from flow_factory.rewards.wire import JSON, Body

PATIENCE = 60.0
"""Seconds within which a body must arrive."""
LONGEST = 128
"""The most characters of an id."""
OPEN = ("/health", "/ready")
"""The endpoints that need no token: health checks have none."""


def make_app(queue: RequestQueue, ended: Callable[[BaseException | None], None] = lambda error: None) -> FastAPI:
    """The application. It runs the queue for as long as it runs itself.

    Args:
        ended: is called with what has ended the queue, if anything has.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        work = asyncio.create_task(queue.run())
        work.add_done_callback(lambda task: None if task.cancelled() else ended(task.exception()))
        yield
        work.cancel()
        await asyncio.wait([work])

    async def authorised(request: Request) -> None:
        header, token = request.headers.get("Authorization", ""), queue.config.token
        if token is not None and request.url.path not in OPEN and not hmac.compare_digest(header.encode(), f"Bearer {token}".encode()):
            raise Refused(401, "the token is missing or wrong: Authorization: Bearer ...")

    app = FastAPI(title="ff-reward", lifespan=lifespan, dependencies=[Depends(authorised)], openapi_url=None)
    _add_routes(app, queue)
    return app


def _add_routes(app: FastAPI, queue: RequestQueue) -> None:
    """Adds the endpoints, and the answer to a refused request."""

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        return JSONResponse({"error": str(error)}, error.status, {} if error.after is None else {"Retry-After": str(error.after)})

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> dict[str, str]:
        queue.require_ready()
        return {"status": "ready"}

    @app.get("/rewards")
    async def rewards() -> dict[str, Any]:
        queue.require_ready()
        return {"rewards": queue.rewards}

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(queue.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.post("/score/{reward:path}")
    async def score(request: Request, reward: str) -> Response:
        return await answered(queue, request, reward, request.headers.get("Idempotency-Key", ""))

    @app.post("/compute")
    async def compute(request: Request, reward: str = "") -> Response:
        queue.require_ready()
        return await answered(queue, request, reward or next(iter(queue.rewards)), "", JSON)


async def answered(queue: RequestQueue, request: Request, reward: str, id: str, kind: str | None = None) -> Response:
    """Answers a request to score.

    Raises:
        Refused: see `MemoTable`.
    """
    given_length, many = request.headers.get("Content-Length", "0"), request.headers.get("Samples", "1")
    length, samples = (int(text) if text.isdecimal() and len(text) < 16 else -1 for text in (given_length, many))
    if length < 0 or samples < 0 or len(id) > LONGEST:
        raise Refused(400, f"Content-Length and Samples must be whole numbers, and Idempotency-Key at most {LONGEST} characters")
    with queue.room(reward, length):
        content = await whole(request, queue.config.max_body_mb)
        answer = await queue.submit(reward, id, Body(kind or request.headers.get("Content-Type", ""), content), samples)
    status, reply = await asyncio.shield(answer)
    queue.metrics.answered(reward, status, reply.get("scores") or reply.get("rewards") or [])
    return JSONResponse(reply, status, {"Idempotency-Key": id} if id else {})


async def whole(request: Request, most: int) -> bytes:
    """The body.

    Raises:
        Refused: it is longer than `most` megabytes, or does not come in time.
    """
    chunks, size = [], 0

    async def read() -> None:
        nonlocal size
        async for chunk in request.stream():
            if (size := size + len(chunk)) > most * MEGA:
                raise Refused(413, f"a body of more than {most} MB (server.max_body_mb)")
            chunks.append(chunk)

    try:
        await asyncio.wait_for(read(), PATIENCE)
    except asyncio.TimeoutError as error:
        raise Refused(408, f"the body did not arrive within {PATIENCE:g} s") from error
    return b"".join(chunks)
