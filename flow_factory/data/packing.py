"""A row's condition as bytes: its structure as JSON, small tensors behind it, large ones apart under the hash of their content.

Nothing in it is code. A picture that is one of the row's own files, as it is read, stays there: only its place in the row and the file's
hash are kept.
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
from flow_factory.utils.tensor_file import NAMES, raw_bytes

DTYPES = {name: dtype for dtype, name in NAMES.items()}
SMALL, MOST_SMALL = 1 << 16, 1 << 20
"""Bytes of a tensor that stays with its row, and of all of them."""
MALFORMED = (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError, OverflowError)
"""What comes of taking apart what was made for that."""

Known = Callable[[Image.Image], Sequence[Any] | None]
"""Where among a row's files a picture is found again; None: nowhere."""


class MalformedError(Exception):
    """Bytes that are no condition."""


def pack(cond: Cond, key: bytes, known: Known = lambda picture: None) -> list[Blob]:
    """The row's large tensors, and the row.

    Raises:
        TypeError: the condition holds something else than tensors, RGB images, JSON values, and lists, tuples or dicts of them.
    """
    packer = Packer(known)
    structure = packer.packed(dict(cond), "cond")
    text = json.dumps([structure, packer.tensors]).encode()
    head = len(text).to_bytes(8, "little") + text
    head += bytes(-(DIGEST + len(head)) % ALIGNED)
    inline = b"".join(packer.inline)
    return [*packer.parts.values(), Blob(key, ROW, (digest(key, head, inline), head, inline))]


class Packer:
    """Takes records apart; small tensors are kept together, see `pack`."""

    def __init__(self, known: Known):
        self.known = known
        self.tensors: list[tuple[str, list[int], int | str]] = []  # dtype, shape, where: an offset behind the text, or a part's key
        self.inline: list[bytes] = []
        self.size = 0
        self.parts: dict[bytes, Blob] = {}

    def packed(self, value: Any, where: str) -> Any:
        """`value` as JSON in which {"tensor": n}, {"image": n}, {"file": ...}, {"list": [...]}, {"tuple": [...]} and {"dict": {...}} stand
        for what JSON lacks; an image is a tensor (H, W, 3) of uint8."""
        if isinstance(value, Tensor) and value.dtype in NAMES:
            return {"tensor": self._tensor(value)}
        if isinstance(value, Image.Image) and value.mode == "RGB":
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
        raise TypeError(f"{where} is a {what}, which is not cacheable: only tensors, RGB images, numbers, texts and lists are")

    def _tensor(self, tensor: Tensor) -> int:
        """Its number."""
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
    """What `pack` has made of a condition, taken apart again without having been anywhere."""
    *parts, row = blobs
    data = {blob.key: np.frombuffer(blob.parts[0], np.uint8) for blob in parts}
    cond = unpack(b"".join(row.parts)[DIGEST:], lambda key, size: data[key], _picture, _nowhere)
    assert cond is not None
    return cond


def _picture(number: int, pixels: Tensor) -> Image.Image:
    return picture_of(pixels)


def _nowhere(found: Sequence[Any]) -> Image.Image:
    raise AssertionError(found)


def picture_of(pixels: Tensor) -> Image.Image:
    """From (H, W, 3) uint8.

    Raises:
        ValueError: they are something else.
    """
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError
    return Image.fromarray(pixels.numpy())


def unpack(
    data: bytes,
    part: Callable[[bytes, int], np.ndarray | None],
    image: Callable[[int, Tensor], Image.Image],
    file: Callable[[Sequence[Any]], Image.Image],
) -> Cond | None:
    """The condition; None where a part of it is missing.

    Args:
        part: the bytes of a large tensor, by hash and size.
        image: of the tensor with that number.
        file: the picture that `known` has found.

    Raises:
        MalformedError: it is no condition, though it has the right hash.
    """
    try:
        length = int.from_bytes(data[:8], "little")
        structure, tensors = json.loads(data[8 : 8 + length])
        behind = 8 + length + -(DIGEST + 8 + length) % ALIGNED
        inline = bytearray(data[behind:])
        made: dict[int, Tensor] = {}
        for number, (dtype, shape, place) in enumerate(tensors):
            tensor = _tensor(DTYPES[dtype], shape, place, inline, part)
            if tensor is None:
                return None
            made[number] = tensor
        found = rebuilt(structure, made, image, file)
        if not isinstance(found, dict):
            raise TypeError
    except UserError:  # of a file
        raise
    except MALFORMED as error:
        raise MalformedError from error
    return found


def _tensor(
    dtype: torch.dtype, shape: list[int], place: int | str, inline: bytearray, part: Callable[[bytes, int], np.ndarray | None]
) -> Tensor | None:
    many = 1
    for side in shape:
        if side < 0:
            raise ValueError
        many *= side
    if not many:
        return torch.empty(shape, dtype=dtype)
    if isinstance(place, str):
        key = bytes.fromhex(place)
        if len(key) != DIGEST:
            raise ValueError
        found = part(key, many * dtype.itemsize)
        return None if found is None else torch.frombuffer(found, dtype=dtype).view(shape)
    if place < 0:
        raise ValueError
    return torch.frombuffer(inline, dtype=dtype, count=many, offset=place).view(shape).clone()  # in memory of its own, aligned as torch's


def rebuilt(value: Any, tensors: Mapping[int, Tensor], image: Any = _picture, file: Any = _nowhere) -> Any:
    """The inverse of `Packer.packed`.

    Raises:
        ValueError, KeyError, TypeError, ...: it was something else; see `MALFORMED`.
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
