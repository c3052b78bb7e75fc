"""A judge on a server that speaks OpenAI's chat completions: vLLM, SGLang, Ollama, or a paid one."""

import asyncio
import base64
import io
import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, TypeVar

import httpx
from PIL import Image

from flow_factory.hparams import RewardArguments
from flow_factory.rewards.exchange import HTTPClient, Wrong, done, together
from flow_factory.rewards.failures import HOPELESS, Failed, address, does_not_answer, number, pause, refused, why, worth_again
from flow_factory.rewards.judges.question import Question
from flow_factory.utils.errors import UserError
from flow_factory.utils.user_code import short

Answer = TypeVar("Answer")
MOST = 4_000_000
"""The largest size of an answer in bytes."""
SOON = 10.0
"""Seconds within which the server must say which models it has."""


def data_url(image: Image.Image) -> str:
    """The picture as a data URL with a PNG, which is lossless."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format="PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


class ServedVLM:
    """Asks up to `max_concurrent` questions at a time; each answer belongs to its own request.

    Raises:
        UserError: a key is not a number in its range, or the address is none of http.
    """

    KEYS: ClassVar[tuple[str, ...]] = (
        "api_base_url", "api_key", "vlm_model", "max_concurrent", "max_retries", "timeout", "max_tokens", "temperature", "top_logprobs",
        "json_answer",
    )  # fmt: skip

    def __init__(self, config: RewardArguments, default: str, model: str, tokens: int):
        extra = config.extra_kwargs
        self.name, self.model = config.name, str(extra.get("vlm_model", model))
        self.url = address(config, "api_base_url", default, "http://localhost:8000/v1")
        self.room = asyncio.Semaphore(int(number(config, "max_concurrent", 8, 1)))
        self.tries = int(number(config, "max_retries", 5, 1))
        self.timeout = number(config, "timeout", 120, 0.001)
        self.tokens = int(number(config, "max_tokens", tokens, 1))
        self.temperature = number(config, "temperature", 0, 0)
        self.top = int(number(config, "top_logprobs", 20, 2))
        self.json = bool(extra.get("json_answer", False))
        self.client = HTTPClient(self.url, {"Authorization": f"Bearer {extra.get('api_key', 'EMPTY')}"})

    def require(self) -> None:
        """Raises:
        UserError: the server does not answer, or does not have the model.
        """
        limit = min(self.timeout, SOON)
        try:
            status, content, _ = done(self.client.request("GET", f"{self.url}/models", MOST, limit))
        except (httpx.HTTPError, asyncio.TimeoutError, Wrong) as error:
            raise does_not_answer(self.name, "api_base_url", self.url, error, limit) from error
        try:
            there = [str(one["id"]) for one in json.loads(content)["data"]] if status == 200 else []
        except (ValueError, LookupError, TypeError):
            there = []
        if there and self.model not in there:
            raise UserError(f"reward {self.name!r}: vlm_model: {self.url} has no {self.model!r}; it has {', '.join(there)}")
        if status in HOPELESS[:2]:
            raise UserError(f"reward {self.name!r}: api_key: {self.url} refuses it ({status})")

    def first(self, questions: Sequence[tuple[Question, Sequence[Sequence[str]]]]) -> list[list[float] | Failed]:
        """See `LocalVLM.first`; a word that is not among the `top_logprobs` likeliest tokens counts nothing."""
        more = {"max_tokens": 1, "temperature": 0, "logprobs": True, "top_logprobs": self.top}

        requests = [partial(self._request, question, more, partial(_likely, groups=groups)) for question, groups in questions]
        return done(together(requests, self.room))

    def answers(self, questions: Sequence[Question], names: Sequence[str] = ()) -> list[str | Failed]:
        """See `LocalVLM.answers`; with `json_answer`, the server is asked to force a JSON object with a number for each name."""
        more: dict[str, Any] = {"max_tokens": self.tokens, "temperature": self.temperature}
        if self.json and names:
            numbers = {name: {"anyOf": [{"type": "number"}, {"const": "N/A"}]} for name in names}
            schema = {"type": "object", "properties": numbers, "required": list(names), "additionalProperties": False}
            more["response_format"] = {"type": "json_schema", "json_schema": {"name": "scores", "strict": True, "schema": schema}}
        return done(together([partial(self._request, question, more, _text) for question in questions], self.room))

    def _body(self, question: Question, more: dict[str, Any]) -> bytes:
        chat = [{"role": "system", "content": question.system}] if question.system else []
        parts = [
            {"type": "image_url", "image_url": {"url": data_url(p)}} if isinstance(p, Image.Image) else {"type": "text", "text": p}
            for p in question.parts
        ]
        return json.dumps({"model": self.model, "messages": [*chat, {"role": "user", "content": parts}], **more}).encode()

    async def _request(
        self, question: Question, more: dict[str, Any], read: Callable[[dict[str, Any]], Answer | Failed]
    ) -> Answer | Failed:
        body = await asyncio.get_running_loop().run_in_executor(None, self._body, question, more)
        sent = {"content": body, "headers": {"Content-Type": "application/json"}}
        failed = Failed("")
        for k in range(self.tries):
            if k:
                await asyncio.sleep(pause(k))
            try:
                url = f"{self.url}/chat/completions"
                status, content, _ = await self.client.request("POST", url, MOST, self.timeout, **sent)
            except asyncio.TimeoutError:
                failed = Failed(f"{self.url} does not answer in {self.timeout:.3g} s")
                continue
            except httpx.HTTPError as error:
                failed = Failed(f"{self.url}: {why(error)}")
                continue
            except Wrong as error:
                return Failed(f"{self.url} {error}")
            if status == 200:
                return _choice(content, read, self.url)
            failed = refused(self.name, self.url, status, content)
            if not worth_again(status):
                break
        return failed


def _choice(content: bytes, read: Callable[[dict[str, Any]], Answer | Failed], url: str) -> Answer | Failed:
    try:
        return read(json.loads(content)["choices"][0])
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
        return Failed(f"{url} answers with something that is not a chat completion: {short(content.decode(errors='replace'))}")


def _text(choice: dict[str, Any]) -> str | Failed:
    if choice.get("finish_reason") == "length":
        return Failed("the judge's answer is longer than max_tokens")
    text = choice["message"]["content"]
    return text if isinstance(text, str) and text.strip() else Failed("the judge's answer is empty")


def _likely(choice: dict[str, Any], groups: Sequence[Sequence[str]]) -> list[float] | Failed:
    if not choice.get("logprobs"):
        return Failed("the server gives no logprobs: it must support logprobs and top_logprobs")
    top = {str(one["token"]): math.exp(float(one["logprob"])) for one in choice["logprobs"]["content"][0]["top_logprobs"]}
    likely = [sum(top.get(word, 0.0) for word in set(group)) for group in groups]
    if not all(0 <= p <= 1.001 for p in likely):
        raise ValueError("no probabilities")
    return likely
