"""The text encoders: loaded when a row is to be encoded, on the device while rows are encoded, and elsewhere in between."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import SchedulerMixin
from torch import Tensor, nn

from flow_factory.config import RunConfig
from flow_factory.data.encoding_windows import Idle, in_windows
from flow_factory.data.fingerprints import module_fingerprint, settings_fingerprint
from flow_factory.data.ledger import Ledger
from flow_factory.models import MODELS
from flow_factory.models.base import ModelAdapter
from flow_factory.models.failures import named_rows
from flow_factory.models.loading import load_parts
from flow_factory.policy.attention import without_cudnn
from flow_factory.types import Cond, Row
from flow_factory.utils.errors import RowError, UserError
from flow_factory.utils.offload import empty_device_cache
from flow_factory.utils.pretrained import on_disk
from flow_factory.utils.terminal import note

FORMAT = 1
"""The version of the record of fingerprints. It must be raised when the fingerprint changes."""
Identity = tuple[list[str], list[str]]
"""(sha256 of the weights of each encoder, sha256 of the settings of each encoder, tokenizer and processor)."""


def loaded_later(config: RunConfig) -> tuple[str, ...]:
    """The parts that are not loaded with the pipeline at first. None for a user's own adapter, which may use them."""
    model = config.model
    if model.model_type not in MODELS:
        return ()
    return MODELS[model.model_type].of(model.model_name_or_path, model.pipeline_class).encoders


class Encoders:
    """Encodes rows at any time, with the same bits.

    Args:
        adapter: an adapter with its encoders, or without them, see `loaded_later`.
        device: the device on which rows are encoded.
        verbose: whether this process reports that it loads them again.
    """

    def __init__(self, config: RunConfig, adapter: ModelAdapter, device: torch.device, verbose: bool = True):
        self.config, self.adapter, self.device, self.verbose = config, adapter, device, verbose
        self.idle: Idle = "drop"
        self.running = False
        """Whether the run has begun. A row that fails then is a `RowError`."""
        self.parts: dict[str, nn.Module] = {name: part for name in adapter.encoders if (part := getattr(adapter.pipe, name)) is not None}
        self.named = tuple(self.parts) or loaded_later(config)
        self.home: dict[str, Tensor] = {}
        self.placed = False
        self.depth = 0

    def encode(self, row: Row, call: Mapping[str, Any]) -> Cond:
        """See `ModelAdapter.encode`.

        Raises:
            UserError: the pipeline cannot encode the row; a `RowError` once the run has begun.
        """
        with self.working(), torch.no_grad(), named_rows([row], self.adapter, "encode", RowError if self.running else UserError):
            self.place()
            return self.adapter.encode(row, call)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Inside this context the encoders stay on the device after the first row."""
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1
            if not self.depth:
                self.release()

    def place(self) -> None:
        """Moves the encoders to the device, and loads them if necessary.

        Raises:
            LoadError: an encoder does not load.
        """
        if self.placed:
            return
        self.load()
        self.adapter.pipe.register_modules(**self.parts)
        if self.idle == "offload" and not self.home:
            self.home = dict(self.tensors())
        without_cudnn()  # a library may have enabled it
        self.adapter.place(self.device)
        self.placed = True

    def load(self) -> None:
        """Loads the encoders from the checkpoint if they are not loaded."""
        if self.parts or not self.named:
            return
        model = self.config.model
        if self.running and self.verbose:
            note("the text encoders are loaded again, for rows that are yet to be encoded")
        if self.running and not in_windows(self.config):  # further rows are probably missing too
            self.idle = "offload"
        family = MODELS[model.model_type].of(model.model_name_or_path, model.pipeline_class)
        self.parts = load_parts(model.model_name_or_path, family, self.named, self.config.mixed_precision)

    def release(self) -> None:
        """Removes the encoders from the pipeline, and from the device unless they stay there."""
        self.adapter.drop_encoders()
        self.placed = False
        if self.idle == "offload":
            for name, tensor in self.tensors():
                if name in self.home:
                    tensor.data = self.home[name]  # no copy: a mapped file is memory that all processes share
        if self.idle == "drop" and self.parts:
            self.parts, self.home = {}, {}
        if self.idle != "keep":
            empty_device_cache(self.device)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The parameters and buffers of all encoders."""
        for part, module in self.parts.items():
            for name, tensor in (*module.named_parameters(), *module.named_buffers()):
                yield f"{part}.{name}", tensor

    # -- fingerprints ------------------------------------------------------------------------------------------------------------------

    def known(self) -> Identity | None:
        """The recorded fingerprints; None if the files have changed since. It loads nothing."""
        key = self._key()
        return None if key is None else self._others(self._record().known.get(key))

    def find_out(self) -> Identity:
        """Computes the fingerprints from the contents, and records them for later starts."""
        self.load()
        found = [module_fingerprint(m) for m in self.parts.values()], [settings_fingerprint(m) for m in self.parts.values()]
        if (key := self._key()) is not None:
            record = self._record()
            record.new[key] = found
            record.save()
        return self._others(found) or ([], [])

    def _others(self, found: Sequence[Any] | None) -> Identity | None:
        """Adds the fingerprints of the tokenizers and processors, which are always loaded."""
        if found is None:
            return None
        parts = ((name, part) for name, part in self.adapter.pipe.components.items() if name not in self.adapter.field.bare)
        others = [part for _, part in parts if not isinstance(part, nn.Module | SchedulerMixin | None)]
        return found[0], [*found[1], *map(settings_fingerprint, others)]

    def _record(self) -> Ledger:
        return Ledger(Path(self.config.data.cache_dir).expanduser() / "encoders.jsonl", FORMAT)

    def _key(self) -> str | None:
        """The files, as `stated` describes them, and what else the weights depend on; None if their origin is unknown."""
        if not loaded_later(self.config) or (folder := on_disk(self.config.model.model_name_or_path)) is None:
            return None
        files = [stated(file) for part in self.named for file in sorted((folder / part).glob("*")) if file.is_file()]
        versions = [diffusers.__version__, transformers.__version__, torch.__version__]
        return " ".join([*files, *versions, self.config.mixed_precision]) if files else None


def stated(file: Path) -> str:
    """Identifies a file of a checkpoint by path, size and modification time.

    In the hub's cache it is a link to a blob, whose name is the hash of its content. That hash then stands for path and time, so that a
    cache elsewhere gives the same text.
    """
    blob, stat = file.resolve(), file.stat()
    if file.is_symlink() and blob.parent.name == "blobs":
        return f"{file.parent.name}/{file.name} {stat.st_size} {blob.name}"
    return f"{file.absolute()} {stat.st_size} {stat.st_mtime_ns}"
