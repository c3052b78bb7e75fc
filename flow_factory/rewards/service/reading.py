"""Reads a request to the service: the body that `wire.py` writes. The body is not trusted, and pickle is never used."""

import base64
import io
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgpack
import numpy as np
from PIL import Image

from flow_factory.data.media import DECODER_ERRORS, FORMATS
from flow_factory.data.media_checks import MOST_IMAGE, MOST_VIDEO
from flow_factory.rewards.wire import DEPTHS, JSON, MSGPACK, MULTIPART, WireError

OLDER = {"prompts": "prompt", "images": "image", "videos": "video", "kwargs": "extra"}
"""Spellings that public servers and clients have used."""


class ScoringRequest(NamedTuple):
    """A received request: n samples. A field is a list of n; media are PIL images, lists of them, or float32 arrays (channels, samples)."""

    id: str
    n: int
    fields: dict[str, list[Any]]


def unpacked(kind: str, content: bytes) -> ScoringRequest:
    """Decodes a body.

    Args:
        kind: the header Content-Type.

    Raises:
        WireError: it is none of the three, or damaged.
    """
    plain = kind.partition(";")[0].strip().lower()
    readers = {MSGPACK: _from_msgpack, MULTIPART: lambda c: _from_multipart(kind, c), JSON: _from_older}
    if plain not in readers:
        raise WireError(f"Content-Type {plain!r}: a body must be one of {', '.join(readers)}")
    payload = readers[plain](content)
    if not isinstance(payload, dict) or not isinstance(payload.get("id"), str) or type(payload.get("n")) is not int:
        raise WireError('the request must be a mapping with "id", a text, "n", a whole number, and "fields"')
    n, fields = payload["n"], payload.get("fields")
    if not isinstance(fields, dict) or not all(isinstance(k, str) and isinstance(v, list) and len(v) == n for k, v in fields.items()):
        raise WireError(f"fields must be a mapping from names to lists of n = {n} values")
    if n < 1 or not all(isinstance(text, str) for text in fields.get("prompt", [None])):
        raise WireError("the field prompt must be a list of at least one text")
    return ScoringRequest(payload["id"], n, _opened(fields))


def _from_msgpack(content: bytes) -> Any:
    try:
        return msgpack.unpackb(content)
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise WireError(f"not msgpack: {_reason(error)}") from error


def _from_json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise WireError(f"not JSON: {_reason(error)}") from error


def _from_multipart(kind: str, content: bytes) -> Any:
    found = re.search(r'boundary="?([\w\'()+,./:=? -]{1,70})"?', kind)
    chunks = (b"\r\n" + content).split(b"\r\n--" + found[1].strip().encode()) if found else []
    if len(chunks) < 3 or not chunks[-1].startswith(b"--"):
        raise WireError("multipart without a boundary, or without its end: it is damaged or truncated")
    parts: dict[str, bytes] = {}
    for chunk in chunks[1:-1]:
        head, _, data = chunk.partition(b"\r\n\r\n")
        name = re.search(rb'(?i)content-disposition:[^\r\n]*[; ]name="([^"\r\n]*)"', head)
        parts[name[1].decode(errors="replace") if name else ""] = data
    if "letter" not in parts:
        raise WireError("multipart without a part named letter")
    payload = _from_json(parts["letter"])
    fields = payload.get("fields") if isinstance(payload, dict) else None
    if not isinstance(fields, dict):
        return payload
    for key in DEPTHS.keys() & fields.keys():
        fields[key] = _leaves(key, fields[key], lambda value: _with(value, parts))
    return payload


def _with(value: dict[str, Any], parts: Mapping[str, bytes]) -> dict[str, Any]:
    if (name := value.get("data")) not in parts:
        raise WireError(f"there is no part named {name!r}")
    return value | {"data": parts[str(name)]}


def _from_older(content: bytes) -> Any:
    payload = _from_json(content)
    if not isinstance(payload, dict):
        raise WireError("the body must be a JSON object with prompt, image or video, and extra")
    payload = {OLDER.get(key, key): value for key, value in payload.items()}
    extra = payload.get("extra") or {}
    fields = {k: v for k, v in payload.items() if v is not None and k in ("prompt", *DEPTHS)}
    if not isinstance(fields.get("prompt"), list) or not isinstance(extra, dict):
        raise WireError("prompt must be a list of texts, and extra a mapping from columns to lists")
    for key in DEPTHS.keys() & fields.keys():
        fields[key] = _leaves(key, fields[key], _from_base64)
    n = len(fields["prompt"])
    # a value that stands for all samples is one of the public servers' own arguments
    columns = {k: v if isinstance(v, list) and len(v) == n else [v] * n for k, v in extra.items()}
    return {"id": "", "n": n, "fields": {**columns, **fields}}


def _from_base64(value: Any) -> dict[str, Any]:
    if not isinstance(value, str):
        raise WireError(f"a picture must be base64 of a PNG or JPEG, not a {type(value).__name__}")
    try:
        return {"data": base64.b64decode(value.partition(",")[2] if value.startswith("data:") else value, validate=True)}
    except ValueError as error:
        raise WireError(f"not base64: {_reason(error)}") from error


def _leaves(name: str, value: Any, of: Callable[[Any], Any]) -> Any:
    """`nested` for a field that is not trusted."""

    def walk(value: Any, depth: int) -> Any:
        if not depth:
            return of(value)
        if not isinstance(value, list):
            raise WireError(f"{name} is {'a list of ' * (DEPTHS[name] + 1)}media, and has a {type(value).__name__} where a list belongs")
        return [walk(one, depth - 1) for one in value]

    return walk(value, DEPTHS[name] + 1)


def _opened(fields: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Decodes media, up to the number of pixels that a video may have."""
    left = MOST_VIDEO

    def picture(value: Any) -> Image.Image:
        nonlocal left
        image = _picture(value)
        if (left := left - image.width * image.height) < 0:
            raise WireError(f"more than {MOST_VIDEO / 1e6:,.0f} megapixels in one request")
        return image

    return {k: _leaves(k, v, _sound if k == "audio" else picture) if k in DEPTHS else v for k, v in fields.items()}


def _data(value: Any) -> bytes:
    data = value.get("data") if isinstance(value, dict) else None
    if not isinstance(data, bytes):
        raise WireError('media must be mappings with "data", bytes')
    return data


def _picture(value: Any) -> Image.Image:
    data = _data(value)
    if "size" in value:
        size = value["size"]
        if not isinstance(size, list) or len(size) != 2 or not all(type(side) is int and 0 < side <= MOST_IMAGE for side in size):
            raise WireError(f"the size of a picture must be [width, height] in pixels, not {str(size)[:60]}")
        if len(data) != 3 * size[0] * size[1]:
            raise WireError(f"a picture of {size[0]} x {size[1]} has {3 * size[0] * size[1]} bytes of RGB, and {len(data)} came")
        return Image.frombytes("RGB", (size[0], size[1]), data)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MOST_IMAGE:
                raise WireError(f"a picture of {image.width} x {image.height}: at most {MOST_IMAGE / 1e6:g} megapixels")
            return image.convert("RGB")
    except (*DECODER_ERRORS, Image.DecompressionBombError) as error:
        if isinstance(error, WireError):
            raise
        raise WireError(f"not a picture, or a damaged one: {_reason(error)}") from error


def _sound(value: Any) -> np.ndarray:
    data, channels = _data(value), value.get("channels")
    if type(channels) is not int or not 0 < channels <= 64 or len(data) % (4 * channels):
        raise WireError(f"sound of {channels} channels does not fit {len(data)} bytes of float32")
    return np.frombuffer(data, "<f4").astype(np.float32).reshape(channels, -1)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
