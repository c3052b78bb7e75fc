"""Rewards on loopback: the service in a thread of this process, with faults between it and its clients where a test wants them; and a
server that answers whatever a test says."""

import asyncio
import json
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from PIL import Image

from flow_factory.commands.serving import listening
from flow_factory.config.service import ServerConfig
from flow_factory.hparams import RewardArguments
from flow_factory.rewards import GroupwiseRewardModel, PointwiseRewardModel, RewardModelOutput
from flow_factory.rewards.service.app import make_app
from flow_factory.rewards.service.request_queue import RequestQueue
from flow_factory.rewards.service.scorer import Scorer
from flow_factory.rewards.service.workers import ThreadWorker
from tests.tiny.http_server import Handler, serving


def numbered(number: int, size: tuple[int, int] = (4, 3)) -> Image.Image:
    """A picture that is a number, below 2^24: what float32 holds exactly."""
    return Image.new("RGB", size, (number >> 16, number >> 8 & 255, number & 255))


def number(image: Image.Image) -> int:
    red, green, blue = image.getpixel((0, 0))
    return red << 16 | green << 8 | blue


class Reads(PointwiseRewardModel):
    """The number of a picture. It notes how often it has seen each, and how many at a time."""

    required_fields = ("image",)
    extra_keys = ()
    seen: Counter[int] = Counter()
    batches: list[int] = []
    gate: threading.Event | None = None
    """Waits for it in each call."""

    def __call__(self, prompt: list[str], image: list[Any], fault: list[Any] | None = None) -> RewardModelOutput:
        if self.gate is not None:
            self.batches.append(len(image))
            assert self.gate.wait(60)
        if fault is not None and "raise" in fault:
            raise ValueError("a picture that it cannot bear")
        self.seen.update(map(number, image))
        return RewardModelOutput(
            [None if said == "none" else float(number(i)) for i, said in zip(image, fault or [""] * len(image), strict=True)]
        )


class Ranks(GroupwiseRewardModel):
    """Each picture's number by its group's largest."""

    required_fields = ("image",)
    extra_keys = ()

    def __call__(self, prompt: list[str], image: list[Any]) -> RewardModelOutput:
        return RewardModelOutput([number(i) / max(map(number, image)) for i in image])


def entry(model: str = f"{__name__}:Reads", name: str = "reads", **more: Any) -> RewardArguments:
    return RewardArguments(name=name, reward_model=model, device="cpu", **more)


@contextmanager
def service(*entries: RewardArguments, wrap: Callable[[Any], Any] = lambda app: app, **server: Any) -> Iterator[tuple[str, RequestQueue]]:
    """(address, the queue) of a service in this process.

    Args:
        wrap: the application as it is served.
        server: keys of `server:`.
    """
    config = ServerConfig(**{"port": 0, "grace": 1, **server})
    queue = RequestQueue(config, [ThreadWorker(Scorer(entries or [entry()], "cpu"))])
    socket = listening(config.host, config.port, "server.host, server.port")
    running = uvicorn.Server(uvicorn.Config(wrap(make_app(queue)), log_config=None, access_log=False, timeout_graceful_shutdown=30))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [socket]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{socket.getsockname()[1]}", queue
    finally:
        running.should_exit = True
        thread.join()
        socket.close()


class Faults:
    """An application that fails by chance, in one request of `every`, while another answers; what it did is counted."""

    KINDS = ("500", "busy", "lost", "cut", "nan", "inf", "short", "long", "garbage", "text", "other", "slow", "before")

    def __init__(self, app: Any, seed: int, late: float, every: int = 4):
        """`late`: the seconds of a slow answer."""
        self.app, self.luck, self.every, self.late = app, random.Random(seed), every, late
        self.done: Counter[str] = Counter()
        self.answers: list[bytes] = []
        """To earlier requests."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
        else:
            await self._post(scope, receive, send)

    async def _post(self, scope: Any, receive: Any, send: Any) -> None:
        kind = self.luck.choice(self.KINDS) if self.luck.randrange(self.every) == 0 else ""
        self.done[kind] += 1
        if kind == "before":  # nothing was scored
            await respond(send, 502, b"bad gateway")
            return
        head, content = await self._answer(scope, receive)
        if kind in ("lost", "cut"):  # scored, and the answer does not come, or not all of it
            await send(head | {"headers": [(b"content-length", b"9999")]})
            await send({"type": "http.response.body", "body": content[:5] if kind == "cut" else b"", "more_body": True})
            await send({"type": "http.response.body", "body": b""})
            return
        if kind == "slow":
            await asyncio.sleep(self.late)
        status, content = self._spoilt(kind, head["status"], content)
        await respond(send, status, content)

    async def _answer(self, scope: Any, receive: Any) -> tuple[Any, bytes]:
        sent: list[Any] = []

        async def keep(message: Any) -> None:
            sent.append(message)

        await self.app(scope, receive, keep)
        return sent[0], b"".join(message.get("body", b"") for message in sent[1:])

    def _spoilt(self, kind: str, status: int, content: bytes) -> tuple[int, bytes]:
        if kind in ("500", "busy"):
            return (500 if kind == "500" else 503), b'{"error": "it cannot"}'
        if status != 200:
            return status, content
        self.answers = [*self.answers[-50:], content]
        told = json.loads(content)
        scores = told["scores"]
        spoilt = {
            "nan": [float("nan"), *scores[1:]],
            "inf": [*scores[:-1], float("-inf")],
            "short": scores[1:],
            "long": [*scores, 0.5],
        }
        if kind in spoilt:
            return 200, json.dumps(told | {"scores": spoilt[kind]}).encode()
        other = {"garbage": b"\xff\x00{" * 9, "text": b"<html>hello</html>", "other": self.luck.choice(self.answers)}
        return 200, other.get(kind, content)


async def respond(send: Any, status: int, content: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", str(len(content)).encode())]})
    await send({"type": "http.response.body", "body": content})


@contextmanager
def says(answer: Callable[[Any, bytes], Any], about: Any = None) -> Iterator[str]:
    """The address of a server that says this to a POST.

    Args:
        answer: of (headers, body): bytes are sent as they are, a number is a status, None closes the connection.
        about: of its rewards; None: it speaks the older protocol.
    """

    class Server(Handler):
        def do_GET(self) -> None:
            there = {"/health": {"status": "ok"}} | ({} if about is None else {"/rewards": {"rewards": about}})
            self.reply(200 if self.path in there else 404, json.dumps(there.get(self.path, {})).encode())

        def do_POST(self) -> None:
            self.reply_or_close(answer(self.headers, self.body()))

    with serving(Server) as address:
        yield address
