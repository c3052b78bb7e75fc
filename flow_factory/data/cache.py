"""Encodes every row once and keeps the result on disk, found again by content: what changes is encoded anew, nothing else is."""

import hashlib
import json
import logging
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, overload
from weakref import WeakValueDictionary

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from flow_factory.data.reader import DataError
from flow_factory.errors import UserError, file_errors
from flow_factory.tensor_file import write_tensors
from flow_factory.terminal import bar
from flow_factory.types import Cond, Row

logger = logging.getLogger(__name__)

PLACES = ("_name_or_path", "name_or_path", "is_local", "local_files_only", "transformers_version", "dtype", "torch_dtype")
"""Settings that say where a part came from, or what the cache's key has from elsewhere."""
SHARED = "choose another folder, or let all who share this one read and write it (umask 002)"


def module_fingerprint(module: nn.Module) -> str:
    """sha256 of the names, shapes, dtypes and bytes of all parameters and buffers."""
    return _digest([*module.named_parameters(), *module.named_buffers()])


def _digest(tensors: Iterable[tuple[str, Tensor]], head: str = "") -> str:
    digest = hashlib.sha256(head.encode())
    for name, tensor in tensors:
        digest.update(json.dumps([name, list(tensor.shape), str(tensor.dtype)]).encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def settings_fingerprint(part: Any) -> str:
    """sha256 of all that a tokenizer or processor writes of itself, or of a model's config, but for where it was loaded from."""
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
    """JSON without `PLACES`, keys in order."""

    def kept(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(k): kept(v) for k, v in value.items() if k not in PLACES}
        return [kept(v) for v in value] if isinstance(value, list | tuple) else value

    return json.dumps(kept(value), sort_keys=True, default=str).encode()


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


class Conditions(Sequence[Cond]):
    """The conditions of some rows, read from the cache when they are asked for; one that is not there, or not whole, is encoded then.

    Tensors are mapped memory, which stays on the disk until it is read, and only as long as somebody holds it: Linux maps at most some
    65,000 files for a process. An image cannot be mapped, since Pillow wants 4 bytes of its own a pixel: it is made when it is asked for,
    shared by all who hold it, and gone with the last of them. So a data set of any size takes the memory of the rows in use.
    Neither tensors nor images may be written to.

    Args:
        encode: makes the condition of a row.
    """

    def __init__(
        self, cache: "ConditionCache", rows: Sequence[Row], encode: Callable[[Row], Cond], paths: Mapping[int, Path] | None = None
    ):
        self.cache, self.rows, self.encode = cache, rows, encode
        self.paths = dict(paths or {})  # found once: a row's condition files need not stay as long as the run

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Cond: ...
    @overload
    def __getitem__(self, index: slice) -> "Conditions": ...
    def __getitem__(self, index: int | slice) -> "Cond | Conditions":
        chosen = range(len(self.rows))[index]
        if isinstance(chosen, range):
            known = {n: self.paths[k] for n, k in enumerate(chosen) if k in self.paths}
            return Conditions(self.cache, [self.rows[k] for k in chosen], self.encode, known)
        row = self.rows[chosen]
        if chosen not in self.paths:
            self.paths[chosen] = self.cache.path(row)
        cond = self.cache.read(self.paths[chosen])
        return self._encoded(row) if cond is None else cond

    def _encoded(self, row: Row) -> Cond:
        """Encoded now, and kept where that is possible: a run does not end for its cache."""
        cond = self.encode(row)
        try:
            self.cache.put(row, cond)
        except (UserError, OSError) as error:
            self.cache.warn(f"{error}; rows are encoded anew whenever they are asked for")
            return cond
        found = self.cache.get(row)
        return cond if found is None else found


class ConditionCache:
    """Conditions by content: one .safetensors file a row, the tensors in it and the rest of the structure as JSON in its metadata.

    `fingerprint` stands for all that the encoding depends on beside the row: encoder weights, call arguments, package versions.
    """

    def __init__(self, folder: Path, fingerprint: str):
        self.folder, self.fingerprint = Path(folder).expanduser(), fingerprint
        self.whole = set[Path]()
        self.warned = False

    def key(self, row: Row) -> str:
        """sha256 of what the encoding depends on, the bytes of condition files among it; the row's other columns are for rewards.

        Raises:
            DataError: a condition file is gone since it was checked.
        """
        try:
            files = [[file_sha256(path) for path in paths] for paths in (row.images, row.videos)]
        except OSError as error:
            raise DataError(f"{row.source}: {error.filename} cannot be read: {error.strerror}") from error
        return hashlib.sha256(json.dumps([self.fingerprint, row.prompt, row.negative_prompt, *files]).encode()).hexdigest()

    def path(self, row: Row) -> Path:
        """Where the row's condition is or will be."""
        key = self.key(row)
        return self.folder / key[:2] / f"{key}.safetensors"

    def has(self, row: Row) -> bool:
        """Whether the row's condition is there; whether it is whole is seen when it is first read."""
        path = self.path(row)
        with file_errors("data.cache_dir", path, SHARED):
            if not path.exists():
                return False
            path.open("rb").close()  # safetensors would call one that may not be read missing
            return True

    def get(self, row: Row) -> Cond | None:
        """The condition, as `Conditions` has it; None where there is none, or none that is whole."""
        return self.read(self.path(row))

    def read(self, path: Path) -> Cond | None:
        """The condition in a file, whose checksum is compared once a process; None where it is gone or damaged, which is said."""
        try:
            metadata, tensors = _read(path)
            if metadata.get("key") != path.stem:
                raise SafetensorError("it is another row's")
            if path not in self.whole and metadata.get("sha256") != _digest(tensors.items(), metadata.get("structure", "")):
                raise SafetensorError("its bytes are not those that were written")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except SafetensorError as error:
            logger.warning("the cached row %s is damaged (%s), and is encoded again", path, error)
            return None
        self.whole.add(path)
        return _unpacked(path, metadata, tensors)

    def warn(self, text: str) -> None:
        """Says it once."""
        if not self.warned:
            logger.warning("%s", text)
        self.warned = True

    def put(self, row: Row, cond: Cond) -> None:
        """Keeps the condition; whole or not at all, also when killed or when two processes write at once.

        Raises:
            TypeError: the condition holds something else than tensors, RGB images, JSON values, and lists, tuples or dicts of them.
        """
        tensors: dict[str, Tensor] = {}
        structure = json.dumps(_pack(cond, "cond", tensors))
        path = self.path(row)
        beside = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp")
        metadata = {"key": path.stem, "structure": structure, "sha256": _digest(sorted(tensors.items()), structure)}
        with file_errors("data.cache_dir", path, SHARED):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_tensors(beside, tensors, metadata)
            beside.replace(path)


def encode_rows(
    rows: Sequence[Row], encode: Callable[[Row], Cond], cache: ConditionCache, progress: bool = True, wanted: Iterable[int] | None = None,
    share: tuple[int, int] = (0, 1),
) -> Conditions:  # fmt: skip
    """The condition of each row, calling `encode` only for what the cache lacks; equal rows share one condition.

    What was just encoded is read back from the cache, so that a first run and a second one compute with the same tensors.

    Args:
        wanted: the rows that will be asked for; None: all.
        share: (k, n): the k-th of n processes, which look up and encode every n-th of them.
    """
    mine = list(range(len(rows)) if wanted is None else wanted)[share[0] :: share[1]]
    paths = {k: cache.path(rows[k]) for k in bar(mine, "looking up rows", "row", progress, delay=2)}  # reads their condition files
    distinct = {path: rows[k] for k, path in paths.items()}
    missing = [row for row in distinct.values() if not cache.has(row)]
    for row in bar(missing, "encoding rows", "row", progress):
        cache.put(row, encode(row))
    return Conditions(cache, rows, encode, paths)


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}, {name: file.get_tensor(name) for name in sorted(file.keys())}  # noqa: SIM118 (not a dict)


def _unpacked(path: Path, metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> Cond:
    def unpack(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        ((kind, inner),) = value.items()
        if kind == "tensor":
            return tensors[inner]
        if kind == "image":
            return _image(path, inner, tensors[inner])
        if kind == "dict":
            return {k: unpack(v) for k, v in inner.items()}
        items = [unpack(v) for v in inner]
        return items if kind == "list" else tuple(items)

    return unpack(json.loads(metadata["structure"]))


_images: WeakValueDictionary[tuple[Path, str], Image.Image] = WeakValueDictionary()


def _image(path: Path, name: str, pixels: Tensor) -> Image.Image:
    """The one PIL image of a file's tensor, made anew if nobody holds it."""
    image = _images.get((path, name))
    if image is None:
        image = _images[path, name] = Image.fromarray(pixels.numpy())
    return image


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
