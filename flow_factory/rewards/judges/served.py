"""A judge on a server that speaks OpenAI's chat completions: vLLM, SGLang, Ollama, or a paid one."""

import base64
import io
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, TypeVar

import httpx
from PIL import Image

from flow_factory.hparams import RewardArguments
from flow_factory.rewards.failures import HOPELESS, Failed, address, number, pause, why, worth_again
from flow_factory.rewards.judges.question import Question
from flow_factory.utils.errors import RewardError, UserError
from flow_factory.utils.user_code import short

Answer = TypeVar("Answer")


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
        self.concurrent = int(number(config, "max_concurrent", 8, 1))
        self.tries = int(number(config, "max_retries", 5, 1))
        self.timeout = number(config, "timeout", 120, 0.001)
        self.tokens = int(number(config, "max_tokens", tokens, 1))
        self.temperature = number(config, "temperature", 0, 0)
        self.top = int(number(config, "top_logprobs", 20, 2))
        self.json = bool(extra.get("json_answer", False))
        limits = httpx.Limits(max_connections=self.concurrent)
        self.client = httpx.Client(
            timeout=self.timeout, limits=limits, headers={"Authorization": f"Bearer {extra.get('api_key', 'EMPTY')}"}
        )

    def require(self) -> None:
        """Raises:
        UserError: the server does not answer, or does not have the model.
        """
        try:
            answer = self.client.get(f"{self.url}/models", timeout=min(self.timeout, 10))
        except httpx.HTTPError as error:
            raise UserError(
                f"reward {self.name!r}: api_base_url: {self.url} does not answer ({why(error)}); start the server first"
            ) from error
        try:
            there = [str(one["id"]) for one in answer.json()["data"]] if answer.status_code == 200 else []
        except (ValueError, LookupError, TypeError):
            there = []
        if there and self.model not in there:
            raise UserError(f"reward {self.name!r}: vlm_model: {self.url} has no {self.model!r}; it has {', '.join(there)}")
        if answer.status_code in HOPELESS[:2]:
            raise UserError(f"reward {self.name!r}: api_key: {self.url} refuses it ({answer.status_code})")

    def first(self, questions: Sequence[tuple[Question, Sequence[Sequence[str]]]]) -> list[list[float] | Failed]:
        """See `LocalVLM.first`; a word that is not among the `top_logprobs` likeliest tokens counts nothing."""
        more = {"max_tokens": 1, "temperature": 0, "logprobs": True, "top_logprobs": self.top}

        def one(pair: tuple[Question, Sequence[Sequence[str]]]) -> list[float] | Failed:
            return self._request(pair[0], more, lambda choice: _likely(choice, pair[1]))

        return self._each(one, questions)

    def answers(self, questions: Sequence[Question], names: Sequence[str] = ()) -> list[str | Failed]:
        """See `LocalVLM.answers`; with `json_answer`, the server is asked to force a JSON object with a number for each name."""
        more: dict[str, Any] = {"max_tokens": self.tokens, "temperature": self.temperature}
        if self.json and names:
            numbers = {name: {"anyOf": [{"type": "number"}, {"const": "N/A"}]} for name in names}
            schema = {"type": "object", "properties": numbers, "required": list(names), "additionalProperties": False}
            more["response_format"] = {"type": "json_schema", "json_schema": {"name": "scores", "strict": True, "schema": schema}}
        return self._each(lambda question: self._request(question, more, _text), questions)

    def _each(self, one: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        with ThreadPoolExecutor(self.concurrent, thread_name_prefix=f"reward {self.name}") as pool:
            return list(pool.map(one, items))

    def _request(self, question: Question, more: dict[str, Any], read: Callable[[dict[str, Any]], Answer | Failed]) -> Answer | Failed:
        chat = [{"role": "system", "content": question.system}] if question.system else []
        parts = [
            {"type": "image_url", "image_url": {"url": data_url(p)}} if isinstance(p, Image.Image) else {"type": "text", "text": p}
            for p in question.parts
        ]
        body = {"model": self.model, "messages": [*chat, {"role": "user", "content": parts}], **more}
        failed = Failed("")
        for k in range(self.tries):
            if k:
                time.sleep(pause(k))
            try:
                answer = self.client.post(f"{self.url}/chat/completions", json=body)
            except httpx.HTTPError as error:
                failed = Failed(f"{self.url}: {why(error)}")
                continue
            if answer.status_code in HOPELESS:
                raise RewardError(f"reward {self.name!r}: {self.url} answers {answer.status_code}: {short(answer.text)}")
            if answer.status_code == 200:
                return _choice(answer, read, self.url)
            failed = Failed(f"{self.url} answers {answer.status_code}: {short(answer.text)}")
            if not worth_again(answer.status_code):
                break
        return failed


def _choice(answer: httpx.Response, read: Callable[[dict[str, Any]], Answer | Failed], url: str) -> Answer | Failed:
    try:
        return read(answer.json()["choices"][0])
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError):
        return Failed(f"{url} answers with something that is not a chat completion: {short(answer.text)}")


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
