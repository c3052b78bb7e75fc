"""Writes checkpoints in a thread, one at a time: the training waits for copies in main memory, not for the disk."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
from accelerate import Accelerator
from diffusers import DiffusionPipeline

from flow_factory.checkpoints.checkpoint import CheckpointError, begin, checkpoints, finish, partial_of, plainly, prune
from flow_factory.checkpoints.model_files import collect, save_model
from flow_factory.checkpoints.state_files import write
from flow_factory.distributed import liveness
from flow_factory.distributed.barriers import wait_for_everyone
from flow_factory.distributed.engines import Engine
from flow_factory.policy.weight_store import WeightStore
from flow_factory.runs.save_formats import SaveFormats
from flow_factory.runs.training_state import stage
from flow_factory.training import kept_rollouts
from flow_factory.utils.background import Background
from flow_factory.utils.errors import SaveError


class Saver(Background):
    """Saves the weights and states of all processes. All of them make each call together.

    Args:
        keep_last_n: whole checkpoints that stay, None for all.
        formats: in which the weights are written beside diffusers' and PEFT's.
    """

    def __init__(
        self, accelerator: Accelerator, engine: Engine, store: WeightStore, pipeline: type[DiffusionPipeline], keep_last_n: int | None,
        formats: SaveFormats,
    ):  # fmt: skip
        super().__init__("saver")
        self.accelerator, self.engine, self.store, self.pipeline, self.keep_last_n = accelerator, engine, store, pipeline, keep_last_n
        self.formats = formats
        self.best: Path | None = None
        """The checkpoint that is never deleted; see `log.keep_best`."""
        self.group = dist.new_group(backend="gloo") if dist.is_initialized() else None  # for a thread of its own

    def save(self, folder: Path, progress: Mapping[str, Any] | None) -> None:
        """Begins to write a checkpoint; returns as soon as the weights may change.

        Args:
            progress: what goes beside the training state; None for the weights that are reported alone.

        Raises:
            SaveError: this one cannot be begun, or the one before could not be written; `check` and `wait` raise it too.
        """
        liveness.set_activity("saving")
        self.wait()
        main = self.accelerator.is_main_process
        partial = partial_of(folder)
        if main:
            with kept(folder):
                begin(partial)
        wait_for_everyone("the checkpoint before")
        with self.store.use(self.store.reported):
            model = collect(self.engine.policy, self.engine.whole, keep=main)
        stays = folder, self.best
        staged = stage(self.store, self.engine) if progress is not None else None

        def work() -> None:
            with kept(folder):
                if staged is not None and progress is not None:
                    write(partial / "state", staged, progress, self.group)
                if main:
                    save_model(partial, self.engine.policy, self.pipeline, model)
                    self.formats.write(partial, folder.name, self.engine.policy, model)
                    finish(partial, folder)
                    prune(folder.parent, self.keep_last_n, but=stays)
                    kept_rollouts.clear(folder.parent, but=folder)

        self.start(work)


@contextmanager
def kept(folder: Path) -> Iterator[None]:
    """Turns an error while a checkpoint is written into a `SaveError` that names the last complete one."""
    try:
        with plainly(folder, "cannot be written"):
            yield
    except CheckpointError as error:
        whole = checkpoints(folder.parent)
        last = f"the last complete checkpoint is {whole[-1]}" if whole else "there is no complete checkpoint"
        raise SaveError(f"{error}; {last}") from error
