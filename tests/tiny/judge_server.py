"""A judge on loopback that speaks OpenAI's chat completions: what it thinks of a picture is how bright it is."""

import base64
import io
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image

from tests.tiny.http_server import Handler, serving

MODELS = ("judge", "Qwen3-VL", "Qwen/Qwen3-VL-8B-Instruct", "RationalRewards-8B-T2I", "RationalRewards-8B-Edit",
          "CodeGoat24/UnifiedReward-2.0-qwen3vl-8b", "CodeGoat24/UnifiedReward-qwen-7b")  # fmt: skip

TITLES = ("Text Faithfulness", "Image Faithfulness", "Physical and Visual Quality", "Text Rendering", "Alignment", "Quality", "Final Score")


def brightness(image: Image.Image) -> float:
    """0 to 1."""
    return float(np.asarray(image.convert("RGB"), np.float64).mean()) / 255


def seen(body: dict[str, Any]) -> list[str | Image.Image]:
    """The parts of a request's last message."""
    parts: list[str | Image.Image] = []
    for part in body["messages"][-1]["content"]:
        if part["type"] == "text":
            parts.append(part["text"])
        else:
            parts.append(Image.open(io.BytesIO(base64.b64decode(part["image_url"]["url"].partition(",")[2]))))
    return parts


def tokens(**probabilities: float) -> dict[str, Any]:
    """A choice whose first token has these probabilities."""
    top = [{"token": token, "logprob": math.log(p)} for token, p in probabilities.items() if p > 0]
    return {"message": {"content": top[0]["token"]}, "finish_reason": "length", "logprobs": {"content": [{"top_logprobs": top}]}}


def text(content: str, finish: str = "stop") -> dict[str, Any]:
    return {"message": {"content": content}, "finish_reason": finish}


def bright(body: dict[str, Any]) -> dict[str, Any]:
    """Yes as likely as the picture is bright (of two, A by how much brighter it is); a number where no probabilities are asked for."""
    light = [brightness(part) for part in seen(body) if isinstance(part, Image.Image)]
    if not body.get("logprobs"):
        form = "\n".join(f"{title}: {1 + 3 * light[-1]:.4f}" for title in TITLES)
        return text(form)
    if "Picture B" in json.dumps(body):
        a = 1 / (1 + math.exp(-4 * (light[0] - light[1]) - 0.7))  # it likes what comes first
        return tokens(A=0.9 * a, B=0.9 * (1 - a), C=0.1)
    yes = light[-1]
    return tokens(**{"Yes": 0.4 * yes, " yes": 0.3 * yes, "No": 0.7 * (1 - yes), "Maybe": 0.3, "one": 0.25 * yes, "1": 0.05})


@contextmanager
def judge(answer: Callable[[dict[str, Any]], Any] = bright) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(address, bodies of the requests so far) of a server in this process.

    Args:
        answer: the choice for a request's body; bytes are sent as they are, a number is a status, None closes the connection.
    """
    bodies: list[dict[str, Any]] = []

    class Judge(Handler):
        def do_GET(self) -> None:
            self.reply(200, json.dumps({"data": [{"id": name} for name in MODELS]}).encode())

        def do_POST(self) -> None:
            body = json.loads(self.body())
            bodies.append(body | {"authorization": self.headers["Authorization"]})
            choice = answer(body)
            self.reply_or_close(json.dumps({"choices": [choice]}).encode() if isinstance(choice, dict) else choice)

    with serving(Judge) as address:
        yield f"{address}/v1", bodies
