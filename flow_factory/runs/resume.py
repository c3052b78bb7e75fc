"""The start of a run: fresh, or from a checkpoint, which is compared with the run before anything is loaded or written."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flow_factory.checkpoints.checkpoint import (
    CheckpointError,
    Kind,
    checkpoints,
    kind_of,
    model_kind,
    newest,
    newest_state,
    plainly,
    run_of,
)
from flow_factory.checkpoints.lora_fit import form_of, require_fit
from flow_factory.checkpoints.lora_names import by_module_names
from flow_factory.checkpoints.model_files import lora_at, require_full
from flow_factory.checkpoints.state_files import Saved
from flow_factory.config import RunConfig
from flow_factory.config.model import AUTO
from flow_factory.models.base import ModelAdapter
from flow_factory.reporting.alarms import FILE, read_alarms
from flow_factory.reporting.metrics import records_of
from flow_factory.runs.ended import nothing_left
from flow_factory.runs.given_files import layers_of
from flow_factory.runs.identity import changes, other_run
from flow_factory.runs.refusals import taken, unlike, weights_only
from flow_factory.runs.run_folder import holds_run, named
from flow_factory.runs.training_state import whole_contents
from flow_factory.utils.counting import counted
from flow_factory.utils.errors import UserError, file_errors
from flow_factory.utils.files import absolute

READABLE = "name a checkpoint that can be read"
UNSEEN = 180.0
"""Seconds for which a network file system may show an old state. NFS refreshes after at most a minute."""


class Finished(Exception):
    """The run has finished: there is nothing left to train.

    Args:
        elsewhere: the folder that the run would be in, if it is not the checkpoint's own.
    """

    def __init__(self, text: str, checkpoint: Path, saved: Saved, elsewhere: Path | None):
        super().__init__(text)
        self.checkpoint, self.epoch = checkpoint, saved.epoch
        self.start, self.elsewhere = Start(run_of(checkpoint), checkpoint, "state", saved), elsewhere

    def require_own(self, identity: dict[str, Any]) -> None:
        """Raises:
        UserError: the state is of another model or algorithm; or it is to be continued in another folder, where nothing would be trained.
        """
        self.start.require_same(identity)
        if self.elsewhere is not None:
            raise UserError(f"{self} (a run in {self.elsewhere} would train nothing)")


@dataclass(frozen=True)
class Start:
    """The start of a run.

    Attributes:
        folder: the folder of the run; None for a new one with a default name.
        path: the checkpoint; None for a fresh start.
        kind: the part of the checkpoint that is loaded.
        saved: the progress of the training state.
    """

    folder: Path | None
    path: Path | None = None
    kind: Kind | None = None
    saved: Saved | None = None

    @property
    def resumes(self) -> bool:
        """Whether the run continues the history of its folder."""
        return self.saved is not None and self.folder is not None and holds_run(self.folder)

    def require_same(self, identity: dict[str, Any]) -> list[str]:
        """Lines about values that have changed and may.

        Raises:
            CheckpointError: the state is of another model or algorithm.
        """
        if self.saved is None:
            return []
        if problem := other_run(self.saved.run, identity):
            raise CheckpointError(
                f"{self.path} belongs to another run: {problem}; "
                f"resume_type: {identity['must']['model.finetune_type']} starts from its weights"
            )
        return list(changes(self.saved.run, identity))


@dataclass(frozen=True)
class Choice:
    """The checkpoint of `model.resume_path`; None if there is none yet."""

    path: Path | None
    there: bool
    """Whether the choosing process sees it."""


def choose(config: RunConfig) -> Choice:
    """Looks for the checkpoint.

    Raises:
        CheckpointError: the path cannot be read.
    """
    given = config.model.resume_path
    if given == AUTO:
        folder = named(config)
        assert folder is not None
        path = newest_state(folder)
        return Choice(path, path is not None)
    with file_errors("model.resume_path", given or "", READABLE, CheckpointError):
        path = newest(Path(given)) if given is not None else None
        return Choice(path, path is not None and path.exists())


def see(choice: Choice, patience: float = UNSEEN) -> None:
    """Waits until this process sees the checkpoint that the main process has chosen.

    Raises:
        CheckpointError: it does not see it after `patience` seconds.
    """
    end = time.monotonic() + patience
    while choice.path is not None and choice.there and not choice.path.exists():
        if time.monotonic() > end:
            text = f"{choice.path}: the main process chose it, but this process did not see it for {patience:g} s"
            raise CheckpointError(f"model.resume_path: {text}; machines must share log.save_dir")
        time.sleep(0.1)


def find_start(config: RunConfig, choice: Choice | None = None, sketch: ModelAdapter | None = None) -> Start:
    """Finds the start of the run.

    Args:
        choice: the chosen checkpoint; None to look for it.
        sketch: see `require_weights`.

    Raises:
        UserError: `model.resume_path` contradicts `model.resume_type`; or the folder has another run, or one that cannot be resumed.
        Finished: the run has nothing left to do.
    """
    folder, given = named(config), config.model.resume_path
    path = (choice or choose(config)).path
    if given is None:
        if folder is not None and holds_run(folder):
            raise taken(folder)
        return Start(folder)
    if given == AUTO:
        assert folder is not None
        if path is None:
            _require_no_weights(folder)
            return Start(folder)  # an earlier start may have left no checkpoint
        return _from_state(config, folder, path)
    assert path is not None
    with file_errors("model.resume_path", given, READABLE, CheckpointError):
        kind = config.model.resume_type or kind_of(path)
        if kind == "state" != kind_of(path):
            text = f"resume_type: {model_kind(path)} would load its weights"
            raise CheckpointError(f"model.resume_path: {path} has no training state (log.save_model_only: true); {text}")
    if kind == "state":
        return _from_state(config, folder or _home(config, path), path)
    if folder is not None and holds_run(folder):
        raise unlike(folder, path, kind)
    require_weights(config, path, sketch)
    return Start(folder, path, kind)


def require_weights(config: RunConfig, path: Path, sketch: ModelAdapter | None = None) -> None:
    """Args:
        sketch: the base model without its weights; None: names and shapes are compared when the weights are loaded.

    Raises:
        CheckpointError: the weights are of another kind than the config's, cannot be read, or do not fit the run's LoRA.
    """
    kind, wanted = model_kind(path), config.model.finetune_type
    if kind != wanted:
        raise CheckpointError(f"{path} holds {kind} weights, but model.finetune_type is {wanted}")
    if kind == "full":
        require_full(path, config.model.target_components, sketch)
        return
    for component in config.model.target_components:
        file, saved = lora_at(path, component)
        if sketch is not None:
            module, linear, chosen = layers_of(config, sketch, component)
            named = by_module_names(str(file), saved, module)
            require_fit("model.resume_path", str(file), named, form_of(config.model), linear, chosen)


def start_lines(config: RunConfig, start: Start, changed: Sequence[str]) -> list[str]:
    """Lines about what a start would do, for `--check`."""
    where = start.folder or f"a new folder in {config.log.save_dir}"
    if start.path is None:
        return [f"a new run, in {where}"]
    if start.saved is None:
        return [f"a new run from the weights of {start.path}, in {where}"]
    return [f"resumes from {start.path}, after epoch {start.saved.epoch}, in {where}", *changed]


def _from_state(config: RunConfig, folder: Path | None, path: Path) -> Start:
    saved = whole_contents(path)[1]
    home = run_of(path)
    own = folder is not None and _same(home, folder)
    if folder is not None and holds_run(folder) and not own:
        raise unlike(folder, path, "state")
    for name, read in (("metrics.jsonl", records_of), (FILE, read_alarms)) if own else ():
        with plainly(home / name, "is damaged"):
            read(home)  # the last line may be partial
    if (not own or (home / "summary.md").is_file()) and (why := nothing_left(config, home, saved.epoch)) is not None:
        elsewhere = None if own else folder or Path(config.log.save_dir)
        raise Finished(f"{path} has {counted(saved.epoch, 'epoch')}, and {why}", path, saved, elsewhere)
    return Start(folder, path, "state", saved)


def _home(config: RunConfig, path: Path) -> Path | None:
    """The folder of a run without a name: a state is continued in its own folder, if that is in this `log.save_dir`."""
    run = run_of(path)
    return run if absolute(path).parent.name == "checkpoints" and _same(run.parent, Path(config.log.save_dir)) else None


def _require_no_weights(folder: Path) -> None:
    """Raises:
    UserError: the folder of a run has checkpoints, but none with a training state.
    """
    if saved := checkpoints(folder / "checkpoints"):
        raise weights_only(folder, saved[-1])


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()
