"""Whether a run has nothing left to do: by its last epoch, or because its monitor has ended it."""

from pathlib import Path

from flow_factory.checkpoints.checkpoint import newest_state, plainly
from flow_factory.config import RunConfig
from flow_factory.config.model import AUTO
from flow_factory.distributed.topology import Topology
from flow_factory.reporting.alarms import FILE, ended_by
from flow_factory.runs.run_folder import named


def why_ended(config: RunConfig, placement: Topology) -> str | None:
    """Why a resumed run has finished; None if it has not. A restarted launcher checks it, because other machines would not join it."""
    goes_on = placement.max_restarts > 0 or config.model.resume_path == AUTO
    return why_over(config) if placement.num_machines > 1 and goes_on else None


def has_ended(config: RunConfig, placement: Topology) -> bool:
    """Whether a resumed run has finished, see `why_ended`."""
    return why_ended(config, placement) is not None


def why_over(config: RunConfig) -> str | None:
    """Why the run of this folder has nothing left to do; None if it is not complete. It reads no checkpoint: launchers ask it often."""
    folder = named(config)
    if folder is None or not (folder / "summary.md").is_file() or (path := newest_state(folder)) is None:
        return None
    return nothing_left(config, folder, int(path.name.rpartition("_")[2]))


def nothing_left(config: RunConfig, folder: Path, epoch: int) -> str | None:
    """Why a run that was in this folder has nothing left to do after this epoch; None if it goes on.

    Raises:
        CheckpointError: `monitor.jsonl` is damaged.
    """
    last, watches = config.train.max_epochs, {watch.key for watch in config.monitor}
    if last is not None and epoch >= last:
        return f"train.max_epochs is {last}: nothing is left to do; raise it to continue"
    with plainly(folder / FILE, "is damaged"):
        if watches and ended_by(folder, epoch, watches):
            return "a watch of monitor ended it: nothing is left to do; change its metric, bound or do, or remove it"
    return None
