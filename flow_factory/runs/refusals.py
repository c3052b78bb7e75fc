"""The errors about a folder that has a run already, which a start would mix with its own."""

from pathlib import Path
from shlex import quote

from flow_factory.checkpoints.checkpoint import Kind, checkpoints, has_state, model_kind, newest_state
from flow_factory.config.model import AUTO
from flow_factory.runs.run_folder import require_free
from flow_factory.utils.errors import UserError
from flow_factory.utils.files import absolute


def taken(folder: Path) -> UserError:
    """The error about a folder that has a run.

    Raises:
        UserError: the run still goes on.
    """
    require_free(folder)
    if not checkpoints(folder / "checkpoints"):
        return UserError(
            f"{folder} holds a run without a checkpoint: choose another run_name, or start it anew in this folder with {_by(AUTO)}"
        )
    if newest_state(folder) is None:
        reason = "holds a run already, without a training state (log.save_model_only: true)"
        return UserError(f"{folder} {reason}: choose another run_name, and to start from its weights {_by(folder)}")
    return UserError(f"{folder} holds a run already: choose another run_name, or resume with {_by(folder)}")


def unlike(folder: Path, path: Path, kind: Kind) -> UserError:
    """The error about a folder whose run cannot go on from this checkpoint.

    Args:
        kind: the part of the checkpoint that would be loaded.

    Raises:
        UserError: the run still goes on.
    """
    if folder.resolve() not in (path.resolve(), *path.resolve().parents):
        return taken(folder)
    if absolute(path).parent.name.startswith(("abandoned-", ".abandoned-")):
        return UserError(f"{path} was set aside when {folder} was resumed from an earlier one: choose another run_name to resume from it")
    if kind == "state":
        reason = f"it is not in {folder / 'checkpoints'}; choose another run_name to resume from it"
        return UserError(f"{folder} cannot go on from {path}: {reason}")
    return weights_only(folder, path)


def weights_only(folder: Path, path: Path) -> UserError:
    """The error about a checkpoint in the folder of a run of which weights alone would be loaded. It names the reason."""
    anew = f"choose another run_name to start anew from these weights, with {_by(path)}"
    if path.is_file():
        reason = f"a file has weights alone, and no training state; {anew}"
    elif has_state(path):
        reason = f"by resume_type: {model_kind(path)} its weights alone are loaded; leave it out to resume, or {anew}"
    else:
        reason = f"of it weights are loaded, and no training state (log.save_model_only: true); {anew}"
    return UserError(f"{folder} cannot go on from {path}: {reason}")


def _by(path: Path | str) -> str:
    return quote(f"model.resume_path={path}")
