"""Encodes every row once and keeps the result on disk, found again by content: what changes is encoded anew, nothing else is."""

import hashlib
import json
import logging
import secrets
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
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


class ConditionCache:
    """Conditions by content: one .safetensors file a row, the tensors in it and the rest of the structure as JSON in its metadata.

    `fingerprint` stands for all that the encoding depends on beside the row: encoder weights, call arguments, package versions.
    """

    def __init__(self, folder: Path, fingerprint: str):
        self.folder, self.fingerprint = Path(folder).expanduser(), fingerprint

    def key(self, row: Row) -> str:
        """sha256 of what the encoding depends on; the row's other columns are for rewards and do not count."""
        return hashlib.sha256(json.dumps([self.fingerprint, row.prompt, row.negative_prompt]).encode()).hexdigest()

    def path(self, row: Row) -> Path:
        """Where the row's condition is or will be."""
        key = self.key(row)
        return self.folder / key[:2] / f"{key}.safetensors"

    def get(self, row: Row) -> Cond | None:
        """The condition, or None where there is none or its file is damaged (which is said once).

        The tensors are on the CPU and stay in the file until they are read (mapped memory): a large data set does not fill the RAM. Do
        not write to them.
        """
        path = self.path(row)
        if not path.exists():
            return None
        try:
            return _load(path)
        except (SafetensorError, _Damaged) as error:
            logger.warning("the cached row %s is damaged (%s); %r is encoded again", path, error, row.prompt[:60])
            return None

    def put(self, row: Row, cond: Cond) -> Cond:
        """Keeps the condition and returns it as `get` will; whole or not at all, also when killed or when two processes write at once.

        Raises:
            TypeError: the condition holds something else than tensors, JSON values, and lists, tuples or dicts of them.
        """
        tensors: dict[str, Tensor] = {}
        structure = json.dumps(_pack(cond, "cond", tensors))
        path = self.path(row)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp")
        save_file(tensors, beside, metadata={"structure": structure, "sha256": _digest(sorted(tensors.items()), structure)})
        beside.replace(path)
        return _load(path)


def encode_rows(rows: Sequence[Row], encode: Callable[[Row], Cond], cache: ConditionCache, progress: bool = True) -> list[Cond]:
    """The condition of each row, calling `encode` only for what the cache lacks; equal rows share one condition.

    What was just encoded is read back from the cache, so that a first run and a second one compute with the same tensors.
    """
    keys = [cache.key(row) for row in rows]
    found: dict[str, Cond] = {}
    missing: list[Row] = []
    for key, row in dict(zip(keys, rows, strict=True)).items():
        if (cond := cache.get(row)) is None:
            missing.append(row)
        else:
            found[key] = cond
    for row in tqdm(missing, desc="encoding rows", unit="row", delay=1, disable=not progress):
        found[cache.key(row)] = cache.put(row, encode(row))
    return [found[key] for key in keys]


class _Damaged(Exception):
    """The file is readable but is not what was written."""


def _load(path: Path) -> Cond:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}  # noqa: SIM118 (not a dict)
    structure = metadata.get("structure", "")
    if metadata.get("sha256") != _digest(tensors.items(), structure):
        raise _Damaged("its bytes are not those that were written")
    return _unpack(json.loads(structure), tensors)


def _pack(value: Any, where: str, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON in which {"tensor": name}, {"list": [...]}, {"tuple": [...]} and {"dict": {...}} stand for what JSON lacks."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous().clone()  # a clone, since safetensors refuses tensors that share memory
        return {"tensor": name}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_pack(v, f"{where}.{k}", tensors) for k, v in enumerate(value)]}
    if isinstance(value, dict) and all(isinstance(k, str) for k in value):
        return {"dict": {k: _pack(v, f"{where}.{k}", tensors) for k, v in value.items()}}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(
        f"{where} is a {type(value).__name__}, which the cache cannot keep: a condition is made of tensors, numbers, texts and lists"
    )


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "tensor":
        return tensors[inner]
    if kind == "dict":
        return {k: _unpack(v, tensors) for k, v in inner.items()}
    items = [_unpack(v, tensors) for v in inner]
    return items if kind == "list" else tuple(items)
