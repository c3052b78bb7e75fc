"""Samples as the body of an HTTP request: what those who ask a reward on a server say to it. Never pickle. `service/reading.py` reads it.

A request is {"id": text, "n": how many samples, "fields": {name: [n values]}}. Media are nested lists whose leaves are
{"size": [width, height], "data": RGB uint8} or {"data": a PNG, JPEG or WebP} for a picture, {"channels": c, "data": float32, little-endian}
for sound; every other field is a column of plain values. Three bodies carry it:

  application/msgpack   the request itself, its data as bytes
  multipart/form-data   a part `letter`, JSON, in which `data` is the name of another part, which holds the bytes
  application/json      the older public protocol: {"prompt": [...], "image": [base64 of a PNG, ...], "extra": {column: [...]}}
"""

import base64
import io
import json
import secrets
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgpack
import numpy as np
from PIL import Image

MSGPACK, MULTIPART, JSON = "application/msgpack", "multipart/form-data", "application/json"
DEPTHS = {"image": 0, "video": 1, "condition_images": 1, "condition_videos": 2, "audio": 0}
"""Of the fields that are media: how deep in lists a sample's pictures are."""
PLAIN = (str, int, float, bool, type(None))
DEEPEST = 16


class WireError(ValueError):
    """A body that is not a request; the message says why, in one line."""


class Body(NamedTuple):
    """What is sent."""

    kind: str
    """The header Content-Type."""
    content: bytes


def leaf(value: Any, pictures: str) -> dict[str, Any]:
    """Of a PIL image, or of an array (channels, samples).

    Args:
        pictures: raw, png or jpeg (of quality 95, which changes the picture).
    """
    if not isinstance(value, Image.Image):
        wave = np.ascontiguousarray(value, "<f4")
        return {"channels": len(wave), "data": wave.tobytes()}
    image = value if value.mode == "RGB" else value.convert("RGB")
    if pictures == "raw":
        return {"size": list(image.size), "data": image.tobytes()}
    buffer = io.BytesIO()
    if pictures == "png":
        image.save(buffer, "PNG", compress_level=1)
    else:
        image.save(buffer, "JPEG", quality=95)
    return {"data": buffer.getvalue()}


def nested(value: Any, depth: int, of: Callable[[Any], Any]) -> Any:
    """A value at each leaf of lists so deep."""
    return [nested(one, depth - 1, of) for one in value] if depth else of(value)


def request_of(id: str, fields: Mapping[str, list[Any]], pictures: str) -> dict[str, Any]:
    """Of the arguments that a reward is called with.

    Raises:
        WireError: a column holds a value that is not a text, number, list or mapping.
    """
    encoded = {name: _encoded(name, values, pictures) for name, values in fields.items()}
    return {"id": id, "n": len(fields["prompt"]), "fields": encoded}


def _encoded(name: str, values: list[Any], pictures: str) -> list[Any]:
    if name in DEPTHS:
        return nested(values, DEPTHS[name] + 1, lambda value: leaf(value, pictures))
    if not _plain(values):
        raise WireError(f"the column {name!r} has a value that cannot be sent; texts, numbers, lists and mappings can")
    return values


def _plain(value: Any, depth: int = 0) -> bool:
    if depth > DEEPEST:
        return False
    if isinstance(value, list | tuple):
        return all(_plain(one, depth + 1) for one in value)
    if isinstance(value, dict):
        return all(isinstance(key, str) and _plain(one, depth + 1) for key, one in value.items())
    return type(value) in PLAIN and not (type(value) is int and not -(2**63) <= value < 2**64)


def packed(request: dict[str, Any], kind: str) -> Body:
    """The request as a body of this kind: MSGPACK, MULTIPART or JSON, whose pictures must not be raw."""
    if kind == MSGPACK:
        return Body(MSGPACK, msgpack.packb(request))
    if kind == JSON:
        return Body(JSON, json.dumps(_older(request)).encode())
    parts: list[bytes] = []

    def named(value: dict[str, Any]) -> dict[str, Any]:
        parts.append(value["data"])
        return value | {"data": str(len(parts) - 1)}

    fields = {k: nested(v, DEPTHS[k] + 1, named) if k in DEPTHS else v for k, v in request["fields"].items()}
    boundary = secrets.token_hex(16)
    text = json.dumps(request | {"fields": fields}).encode()
    whole = [_part(boundary, "letter", JSON, text)]
    whole += [_part(boundary, str(k), "application/octet-stream", data) for k, data in enumerate(parts)]
    return Body(f"{MULTIPART}; boundary={boundary}", b"".join([*whole, f"--{boundary}--\r\n".encode()]))


def _part(boundary: str, name: str, kind: str, data: bytes) -> bytes:
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="{name}"\r\nContent-Type: {kind}\r\n\r\n'
    return b"".join((head.encode(), data, b"\r\n"))


def _older(request: dict[str, Any]) -> dict[str, Any]:
    """The request in the older protocol, which has neither an id nor sound."""

    def text(value: dict[str, Any]) -> str:
        return base64.b64encode(value["data"]).decode()

    fields = request["fields"]
    media = {k: nested(fields[k], depth + 1, text) for k, depth in DEPTHS.items() if k in fields and k != "audio"}
    extra = {k: v for k, v in fields.items() if k not in DEPTHS and k != "prompt"}
    return {"prompt": fields["prompt"], **media, **({"extra": extra} if extra else {})}
