"""Serialises a row's condition: its structure as JSON, then small tensors; large tensors are stored apart by content hash.

The format contains no code. An image that equals one of the row's own files is stored as a reference: its index in the row and the
file's hash.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from flow_factory.data.index import PART, ROW
from flow_factory.data.shards import ALIGNED, DIGEST, Blob, digest
from flow_factory.types import Cond
from flow_factory.utils.errors import UserError
from flow_factory.utils.tensor_file import DTYPES, NAMES, raw_bytes

SMALL, MOST_SMALL = 1 << 16, 1 << 20
"""Limits in bytes for one tensor that is stored with its row, and for all such tensors of a row."""
MODES = ("L", "RGB", "RGBA")
"""Modes of images that are stored as pixels."""
MALFORMED = (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError, OverflowError)
"""Errors that unpacking crafted bytes can raise."""

Known = Callable[[Image.Image], Sequence[Any] | None]
"""Returns the reference of an image to one of the row's files; None: it is in no file."""


class MalformedError(Exception):
    """The bytes are not a packed condition."""


def pack(cond: Cond, key: bytes, known: Known = lambda image: None) -> list[Blob]:
    """The blobs of the row's large tensors, then the blob of the row.

    Raises:
        TypeError: the condition holds something other than tensors, images of `MODES`, JSON values, and lists, tuples or dicts of them.
    """
    packer = Packer(known)
    structure = packer.packed(dict(cond), "cond")
    text = json.dumps([structure, packer.tensors]).encode()
    head = len(text).to_bytes(8, "little") + text
    head += bytes(-(DIGEST + len(head)) % ALIGNED)
    inline = b"".join(packer.inline)
    return [*packer.parts.values(), Blob(key, ROW, (digest(key, head, inline), head, inline))]


class Packer:
    """Replaces tensors and images in nested values by references and collects the tensors, see `pack`."""

    def __init__(self, known: Known):
        self.known = known
        self.tensors: list[tuple[str, list[int], int | str]] = []  # dtype, shape, place: an offset in `inline`, or the key of a part
        self.inline: list[bytes] = []
        self.size = 0
        self.parts: dict[bytes, Blob] = {}

    def packed(self, value: Any, where: str) -> Any:
        """`value` as JSON. {"tensor": n}, {"image": n}, {"file": ...}, {"list": [...]}, {"tuple": [...]} and {"dict": {...}} represent
        what JSON lacks; an image is a tensor of uint8, (H, W) or (H, W, channels)."""
        if isinstance(value, Tensor) and value.dtype in NAMES:
            return {"tensor": self._tensor(value)}
        if isinstance(value, Image.Image) and value.mode in MODES:
            found = self.known(value)
            return {"image": self._tensor(torch.from_numpy(np.array(value)))} if found is None else {"file": found}
        if isinstance(value, list | tuple):
            kind = "list" if isinstance(value, list) else "tuple"
            return {kind: [self.packed(v, f"{where}.{k}") for k, v in enumerate(value)]}
        if isinstance(value, dict) and all(isinstance(k, str) for k in value):
            return {"dict": {k: self.packed(v, f"{where}.{k}") for k, v in value.items()}}
        if value is None or isinstance(value, bool | int | float | str):
            return value
        kind = f"{value.mode} image" if isinstance(value, Image.Image) else type(value).__name__
        what = f"tensor of {value.dtype}" if isinstance(value, Tensor) else kind
        raise TypeError(f"{where} is a {what}, which is not cacheable: only tensors, images, numbers, texts and lists are")

    def _tensor(self, tensor: Tensor) -> int:
        """Adds a tensor and returns its number."""
        data = raw_bytes(tensor)
        place: int | str
        if len(data) < SMALL and self.size + len(data) <= MOST_SMALL:
            place = self.size
            self.inline.append(bytes(data) + bytes(-len(data) % ALIGNED))
            self.size += len(self.inline[-1])
        else:
            key = digest(data)
            place = key.hex()
            self.parts[key] = Blob(key, PART, (data,))
        self.tensors.append((NAMES[tensor.dtype], list(tensor.shape), place))
        return len(self.tensors) - 1


def in_memory(blobs: Sequence[Blob]) -> Cond:
    """Unpacks the result of `pack` directly, without a cache."""
    *parts, row = blobs
    data = {blob.key: np.frombuffer(blob.parts[0], np.uint8) for blob in parts}
    cond = unpack(b"".join(row.parts)[DIGEST:], lambda key, size: data[key], _image, _nowhere)
    assert cond is not None
    return cond


def _image(number: int, pixels: Tensor) -> Image.Image:
    return image_of(pixels)


def _nowhere(found: Sequence[Any]) -> Image.Image:
    raise AssertionError(found)


def image_of(pixels: Tensor) -> Image.Image:
    """The image of (H, W) or (H, W, channels) uint8 pixels.

    Raises:
        ValueError: another shape or dtype.
    """
    if pixels.dtype != torch.uint8 or pixels.shape[2:] not in ((), (3,), (4,)):
        raise ValueError
    return Image.fromarray(pixels.numpy())


def unpack(
    data: bytes,
    part: Callable[[bytes, int], np.ndarray | None],
    image: Callable[[int, Tensor], Image.Image],
    file: Callable[[Sequence[Any]], Image.Image],
) -> Cond | None:
    """The condition; None if a large tensor is missing.

    Args:
        part: returns the bytes of a large tensor, by hash and size.
        image: returns the image of a tensor's number and pixels.
        file: returns the image for a reference made by `known`.

    Raises:
        MalformedError: the bytes are not a packed condition, though they have the right hash.
    """
    try:
        length = int.from_bytes(data[:8], "little")
        structure, tensors = json.loads(data[8 : 8 + length])
        inline_start = 8 + length + -(DIGEST + 8 + length) % ALIGNED
        inline = bytearray(data[inline_start:])
        made: dict[int, Tensor] = {}
        for number, (dtype, shape, place) in enumerate(tensors):
            tensor = _tensor(DTYPES[dtype], shape, place, inline, part)
            if tensor is None:
                return None
            made[number] = tensor
        found = rebuilt(structure, made, image, file)
        if not isinstance(found, dict):
            raise TypeError
    except UserError:  # from `file`
        raise
    except MALFORMED as error:
        raise MalformedError from error
    return found


def _tensor(
    dtype: torch.dtype, shape: list[int], place: int | str, inline: bytearray, part: Callable[[bytes, int], np.ndarray | None]
) -> Tensor | None:
    numel = 1
    for side in shape:
        if side < 0:
            raise ValueError
        numel *= side
    if not numel:
        return torch.empty(shape, dtype=dtype)
    if isinstance(place, str):
        key = bytes.fromhex(place)
        if len(key) != DIGEST:
            raise ValueError
        found = part(key, numel * dtype.itemsize)
        return None if found is None else torch.frombuffer(found, dtype=dtype).view(shape)
    if place < 0:
        raise ValueError
    return torch.frombuffer(inline, dtype=dtype, count=numel, offset=place).view(shape).clone()  # the copy is aligned


def rebuilt(value: Any, tensors: Mapping[int, Tensor], image: Any = _image, file: Any = _nowhere) -> Any:
    """The inverse of `Packer.packed`.

    Raises:
        ValueError, KeyError, TypeError, ...: `value` was not made by it; see `MALFORMED`.
    """
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "tensor":
        return tensors[inner]
    if kind == "image":
        return image(inner, tensors[inner])
    if kind == "file":
        return file(inner)
    if kind == "dict":
        return {k: rebuilt(v, tensors, image, file) for k, v in inner.items()}
    items = [rebuilt(v, tensors, image, file) for v in inner]
    return items if kind == "list" else tuple(items)
