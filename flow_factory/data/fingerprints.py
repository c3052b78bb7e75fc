"""Content fingerprints of encoders, tokenizers and files."""

import hashlib
import json
import time
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from flow_factory.data.ledger import Ledger

PLACES = ("_name_or_path", "name_or_path", "is_local", "local_files_only", "transformers_version", "dtype", "torch_dtype")
"""Settings to ignore: they only say where a component was loaded from, or are in the cache's key already."""
FORMAT = 1
"""Version of the file of hashes."""
SETTLED = 2.0
"""Seconds after which a modification time is trusted to identify a file's content, since some file systems count in whole seconds."""


def module_fingerprint(module: nn.Module) -> str:
    """sha256 of the names, shapes, dtypes and bytes of all parameters and buffers."""
    return _digest([*module.named_parameters(), *module.named_buffers()])


def _digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(json.dumps([name, list(tensor.shape), str(tensor.dtype)]).encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def settings_fingerprint(part: Any) -> str:
    """sha256 of the files that a tokenizer or processor saves, or of a model's config, without the settings in `PLACES`."""
    digest = hashlib.sha256(type(part).__name__.encode())
    if isinstance(part, nn.Module):
        config = getattr(part, "config", {})
        digest.update(_settled(config.to_dict() if hasattr(config, "to_dict") else dict(config)))
    elif hasattr(part, "save_pretrained"):
        with TemporaryDirectory() as folder:
            part.save_pretrained(folder)
            for path in sorted(p for p in Path(folder).rglob("*") if p.is_file()):
                content = path.read_bytes()
                digest.update(path.name.encode() + (_settled(json.loads(content)) if path.suffix == ".json" else content))
    else:
        digest.update(repr(part).encode())
    return digest.hexdigest()


def _settled(value: Any) -> bytes:
    """The value as JSON with sorted keys, without `PLACES`."""

    def kept(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(k): kept(v) for k, v in value.items() if k not in PLACES}
        return [kept(v) for v in value] if isinstance(value, list | tuple) else value

    return json.dumps(kept(value), sort_keys=True, default=str).encode()


def file_sha256(path: str) -> str:
    """sha256 of the file's bytes. The file is read again only when its size or modification time changes."""
    stat = Path(path).stat()
    return _file_sha256(path, stat.st_size, stat.st_mtime_ns)


@cache
def _file_sha256(path: str, size: int, changed: int) -> str:
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class FileHashes(Ledger):
    """sha256 of files by path, size and modification time, so that a later start need not read them again."""

    def __init__(self, file: Path):
        super().__init__(file, FORMAT)

    def of(self, path: str) -> str:
        """The sha256 of a file.

        Raises:
            OSError: there is no such file, or it cannot be read.
        """
        stat = Path(path).stat()
        key = f"{stat.st_size} {stat.st_mtime_ns} {Path(path).absolute()}"
        fact = self.known.get(key) or self.new.get(key)
        if fact is not None and len(fact) == 1 and isinstance(fact[0], str):
            return fact[0]
        digest = file_sha256(path)
        if time.time() - stat.st_mtime > SETTLED:
            self.new[key] = (digest,)
        return digest
