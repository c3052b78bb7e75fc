"""Encodes every row once and keeps the result on disk, found again by content: what changes is encoded anew, nothing else is."""

import hashlib
import json
import logging
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, overload
from weakref import WeakValueDictionary

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from flow_factory.types import Cond, Row

logger = logging.getLogger(__name__)


def module_fingerprint(module: nn.Module) -> str:
    """sha256 of the names, shapes, dtypes and bytes of all parameters and buffers."""
    return _digest([*module.named_parameters(), *module.named_buffers()])


def _digest(tensors: Iterable[tuple[str, Tensor]], head: str = "") -> str:
    digest = hashlib.sha256(head.encode())
    for name, tensor in tensors:
        digest.update(json.dumps([name, list(tensor.shape), str(tensor.dtype)]).encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def file_sha256(path: str) -> str:
    """Of the file's bytes; read once while its size and its time of change stay the same."""
    stat = Path(path).stat()
    return _file_sha256(path, stat.st_size, stat.st_mtime_ns)


@cache
def _file_sha256(path: str, size: int, changed: int) -> str:
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@dataclass(frozen=True)
class Stored:
    """A condition as it lies in its file.

    Tensors stay there until they are read (mapped memory). An image cannot be mapped, since Pillow wants 4 bytes of its own a pixel: it
    is made when it is asked for, shared by all who hold it, and gone with the last of them. So the conditions of a data set of any size
    take the memory of those in use.
    """

    structure: Any
    tensors: dict[str, Tensor]
    images: WeakValueDictionary[str, Image.Image] = field(default_factory=WeakValueDictionary)

    def open(self) -> Cond:
        """The condition; neither its tensors nor its images may be written to."""
        return self._unpack(self.structure)

    def _unpack(self, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        ((kind, inner),) = value.items()
        if kind == "tensor":
            return self.tensors[inner]
        if kind == "image":
            return self._image(inner)
        if kind == "dict":
            return {k: self._unpack(v) for k, v in inner.items()}
        items = [self._unpack(v) for v in inner]
        return items if kind == "list" else tuple(items)

    def _image(self, name: str) -> Image.Image:
        image = self.images.get(name)
        if image is None:
            image = self.images[name] = Image.fromarray(self.tensors[name].numpy())
        return image


class Conditions(Sequence[Cond]):
    """The conditions of some rows, each opened when it is asked for; see `Stored`."""

    def __init__(self, stored: Sequence[Stored]):
        self.stored = stored

    def __len__(self) -> int:
        return len(self.stored)

    @overload
    def __getitem__(self, index: int) -> Cond: ...
    @overload
    def __getitem__(self, index: slice) -> "Conditions": ...
    def __getitem__(self, index: int | slice) -> "Cond | Conditions":
        return Conditions(self.stored[index]) if isinstance(index, slice) else self.stored[index].open()


class ConditionCache:
    """Conditions by content: one .safetensors file a row, the tensors in it and the rest of the structure as JSON in its metadata.

    `fingerprint` stands for all that the encoding depends on beside the row: encoder weights, call arguments, package versions.
    """

    def __init__(self, folder: Path, fingerprint: str):
        self.folder, self.fingerprint = Path(folder).expanduser(), fingerprint

    def key(self, row: Row) -> str:
        """sha256 of what the encoding depends on, the bytes of condition files among it; the row's other columns are for rewards."""
        files = [[file_sha256(path) for path in paths] for paths in (row.images, row.videos)]
        return hashlib.sha256(json.dumps([self.fingerprint, row.prompt, row.negative_prompt, *files]).encode()).hexdigest()

    def path(self, row: Row) -> Path:
        """Where the row's condition is or will be."""
        key = self.key(row)
        return self.folder / key[:2] / f"{key}.safetensors"

    def get(self, row: Row) -> Stored | None:
        """The condition, or None where there is none or its file is damaged (which is said once)."""
        path = self.path(row)
        if not path.exists():
            return None
        try:
            return _load(path)
        except (SafetensorError, _Damaged) as error:
            logger.warning("the cached row %s is damaged (%s); %r is encoded again", path, error, row.prompt[:60])
            return None

    def put(self, row: Row, cond: Cond) -> Stored:
        """Keeps the condition and returns it as `get` will; whole or not at all, also when killed or when two processes write at once.

        Raises:
            TypeError: the condition holds something else than tensors, RGB images, JSON values, and lists, tuples or dicts of them.
        """
        tensors: dict[str, Tensor] = {}
        structure = json.dumps(_pack(cond, "cond", tensors))
        path = self.path(row)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp")
        save_file(tensors, beside, metadata={"structure": structure, "sha256": _digest(sorted(tensors.items()), structure)})
        beside.replace(path)
        return _load(path)


def encode_rows(rows: Sequence[Row], encode: Callable[[Row], Cond], cache: ConditionCache, progress: bool = True) -> Conditions:
    """The condition of each row, calling `encode` only for what the cache lacks; equal rows share one condition.

    What was just encoded is read back from the cache, so that a first run and a second one compute with the same tensors.
    """
    keys = [cache.key(row) for row in rows]
    found: dict[str, Stored] = {}
    missing: list[Row] = []
    for key, row in dict(zip(keys, rows, strict=True)).items():
        if (stored := cache.get(row)) is None:
            missing.append(row)
        else:
            found[key] = stored
    for row in tqdm(missing, desc="encoding rows", unit="row", delay=1, disable=not progress):
        found[cache.key(row)] = cache.put(row, encode(row))
    return Conditions([found[key] for key in keys])


class _Damaged(Exception):
    """The file is readable but is not what was written."""


def _load(path: Path) -> Stored:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}  # noqa: SIM118 (not a dict)
    structure = metadata.get("structure", "")
    if metadata.get("sha256") != _digest(tensors.items(), structure):
        raise _Damaged("its bytes are not those that were written")
    return Stored(json.loads(structure), tensors)


def _pack(value: Any, where: str, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON in which {"tensor": name}, {"image": name}, {"list": [...]}, {"tuple": [...]} and {"dict": {...}} stand for what
    JSON lacks; an image is a tensor (H, W, 3) of uint8."""
    name = str(len(tensors))
    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().contiguous().clone()  # a clone, since safetensors refuses tensors that share memory
        return {"tensor": name}
    if isinstance(value, Image.Image) and value.mode == "RGB":
        tensors[name] = torch.from_numpy(np.array(value))
        return {"image": name}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_pack(v, f"{where}.{k}", tensors) for k, v in enumerate(value)]}
    if isinstance(value, dict) and all(isinstance(k, str) for k in value):
        return {"dict": {k: _pack(v, f"{where}.{k}", tensors) for k, v in value.items()}}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    what = f"{value.mode} image" if isinstance(value, Image.Image) else type(value).__name__
    raise TypeError(
        f"{where} is a {what}, which the cache cannot keep: a condition is made of tensors, RGB images, numbers, texts and lists"
    )
