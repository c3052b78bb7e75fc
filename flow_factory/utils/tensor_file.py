"""A writer of safetensors files: equal tensors give equal bytes, and permissions follow the umask.

The library's own writer orders the metadata randomly, and only the owner can read its files.
"""

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2", torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
    torch.bool: "BOOL",
}  # fmt: skip
"""dtype -> its name in the format."""
DTYPES = {name: dtype for dtype, name in NAMES.items()}
LARGEST = 100_000_000
"""The largest size of a header that the format allows, in bytes."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> str:
    """Writes a file tensor by tensor, without copies of tensors on the CPU. Returns its sha256 in hex.

    Raises:
        OSError: the file system refuses.
        KeyError: the format does not have the dtype.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))  # the widest first, so that all are aligned
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name in names:
        begin, end = end, end + tensors[name].nbytes
        header[name] = {"dtype": NAMES[tensors[name].dtype], "shape": list(tensors[name].shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    head = struct.pack("<Q", len(text)) + text
    digest = hashlib.sha256(head)
    with path.open("wb") as file:
        file.write(head)
        for name in names:
            part = raw_bytes(tensors[name])
            digest.update(part)
            file.write(part)
    return digest.hexdigest()


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: its dtype by the format's name, its shape, and its first and last byte."""

    dtype: str
    shape: list[int]
    begin: int
    end: int


def read_header(path: Path) -> dict[str, Stored]:
    """Name -> tensor of a complete file. It does not read the tensors.

    Raises:
        OSError: the file system refuses.
        ValueError: the file is damaged or truncated. The text continues a sentence that begins with the file's name.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else LARGEST + 1
        text = stream.read(length) if length <= min(LARGEST, size) else b""
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        first = 8 + length
        found = {name: _stored(tensor, first) for name, tensor in header.items()}
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError, OverflowError) as error:
        raise ValueError("is damaged: its header cannot be read") from error
    wanted = max((tensor.end for tensor in found.values()), default=first)
    if size != wanted:
        raise ValueError(f"is truncated or damaged: {size:,} bytes, and its header says {wanted:,}")
    return found


def _stored(tensor: Mapping[str, Any], first: int) -> Stored:
    begin, end = (int(place) for place in tensor["data_offsets"])
    if not 0 <= begin <= end:
        raise ValueError
    return Stored(str(tensor["dtype"]), [int(n) for n in tensor["shape"]], first + begin, first + end)


def raw_bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
