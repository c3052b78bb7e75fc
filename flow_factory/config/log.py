"""`log:` where metrics, pictures and checkpoints go."""

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from flow_factory.config.base import Folder, Name, Section, Shown
from flow_factory.utils.registry import Registry

_TRACKERS = Registry("tracker", dict.fromkeys(["wandb", "swanlab", "tensorboard", "none"], ""))

MOVABLE = ("run_name", "project", "logging_backend")
"""Keys of `log:` that may stand at the top level instead."""


def _listed(value: Any) -> Any:
    if value is None:
        return ()
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(","))
    return tuple(value) if isinstance(value, list) else value


def _known(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        _TRACKERS.path(name)
    return tuple(name for name in names if name.lower() != "none")


Backends = Annotated[
    tuple[str, ...], BeforeValidator(_listed), AfterValidator(_known), Shown("wandb | swanlab | tensorboard | none, or several", "none")
]


class LogConfig(Section):
    """Where metrics, pictures and checkpoints go."""

    run_name: Name | None = Field(
        None,
        description="folder of the run in save_dir; null = that of a resumed state, or {model_type}_{finetune_type}_{trainer_type}_{time}",
    )
    project: Name = Field("Flow-Factory", description="project of the run in a tracker")
    logging_backend: Backends = Field(
        (), description="trackers: one, a list or a comma text, or package.module.Class; metrics.jsonl always"
    )
    save_dir: Folder = Field("save", description="folder of the runs' folders")
    save_freq: int = Field(10, ge=0, description="epochs between two checkpoints; 0 = only the last, which is always saved")
    save_minutes: float | None = Field(
        None, gt=0, description="minutes after which the end of an epoch saves, too, since the last checkpoint; null = save_freq alone"
    )
    save_model_only: bool = Field(True, description="save weights alone; false also what an exact resumption needs")
    keep_last_n: int | None = Field(None, ge=1, description="checkpoints to keep; null = all")
    rollouts_gb: float = Field(
        20.0, ge=0, description="GB of samples of an unfinished epoch that a run keeps when a signal stops it, so as to go on from them"
    )
    num_samples: int = Field(16, ge=0, description="pictures to log at an epoch that logs pictures")
    verbose: bool = Field(False, description="more lines on the terminal, and the trace of what ends a run")
