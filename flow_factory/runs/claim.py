"""The claim of a run's folder: the main process chooses and locks it before anything is written, and all processes check it."""

from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from flow_factory.config import RunConfig, config_tree
from flow_factory.distributed.barriers import wait_for_everyone
from flow_factory.reporting.metrics import read_metrics
from flow_factory.reporting.trackers import Trackers, open_trackers
from flow_factory.runs.resume import Choice, Start, choose, find_start, see
from flow_factory.runs.run_folder import RunFolder, archive_later_checkpoints, default_name
from flow_factory.runs.training_state import Progress
from flow_factory.utils.errors import UserError
from flow_factory.utils.terminal import note


def choose_for_all(config: RunConfig, accelerator: Accelerator) -> Choice:
    """The checkpoint that the main process finds. On a network file system another process may see an older state of the folder.

    Raises:
        CheckpointError: the checkpoint cannot be read, or this process does not see it.
    """
    chosen = choose(config) if accelerator.is_main_process else None
    choice: Choice = broadcast_object_list([chosen])[0]
    see(choice)
    return choice


def claim_folder(config: RunConfig, start: Start, accelerator: Accelerator) -> tuple[RunFolder | None, Path]:
    """(the claim on the main process, else None; the folder of the run).

    Raises:
        UserError: another run uses the folder.
    """
    claim = None
    if accelerator.is_main_process:
        new = start.folder is None
        claim = RunFolder(Path(config.log.save_dir, default_name(config)) if start.folder is None else start.folder, new)
    with claim or nullcontext():
        if claim is not None:
            find_start(config)  # again, because now nobody else can write there
        wait_for_everyone("examining the checkpoint and the run's folder")
        return claim, broadcast_object_list([claim and claim.path])[0]


def begin(config: RunConfig, claim: RunFolder, start: Start, progress: Progress) -> Trackers:
    """Opens the trackers, and sets aside the checkpoints and metrics after the state from which the run starts.

    Raises:
        TrackerError: see `open_trackers`. Nothing has changed then.
    """
    trackers = open_trackers(config.log.logging_backend, config.log.project, claim.path.name, claim.path, config_tree(config))
    if start.saved is not None and (aside := archive_later_checkpoints(claim.path, progress.epoch)):
        note(aside)
    trackers.truncate_after(progress.epoch if start.saved is not None else -1)  # an earlier start may have left metrics only
    claim.begin(config)
    return trackers


def missed(folder: Path, epoch: int) -> bool:
    """Whether the run was stopped during the evaluation after this epoch."""
    return not any(line["step"] == epoch and "time/eval_s" in line for line in read_metrics(folder / "metrics.jsonl"))


def require_shared(folder: Path, accelerator: Accelerator) -> None:
    """Raises:
    UserError: a process on another machine does not see the folder of the run.
    """
    blind = int(accelerator.reduce(torch.tensor(int(not folder.is_dir()), device=accelerator.device)).item())
    if blind:
        text = f"{blind} of {accelerator.num_processes} processes do not see {folder}"
        raise UserError(f"log.save_dir: {text}; machines must share it, for each process writes its part of a checkpoint there")
