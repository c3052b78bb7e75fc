"""`log:` where metrics, images and checkpoints go."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from flow_factory.config.base import Folder, Name, Section, Shown
from flow_factory.utils.registry import Registry

_TRACKERS = Registry("tracker", dict.fromkeys(["wandb", "swanlab", "tensorboard", "none"], ""))

MOVABLE = ("run_name", "project", "logging_backend")
"""Keys of `log:` that are also accepted at the top level."""


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


Formats = Annotated[
    tuple[Literal["diffusers", "peft", "comfyui", "kohya"], ...],
    BeforeValidator(_listed),
    Shown("diffusers | peft | comfyui | kohya, or several", "none"),
]


class LogConfig(Section):
    """Where metrics, images and checkpoints go."""

    run_name: Name | None = Field(
        None,
        description="folder of the run inside save_dir; null = that of a resumed state, else "
        "{model_type}_{finetune_type}_{trainer_type}_{time}",
    )
    project: Name = Field("Flow-Factory", description="project name in the tracker")
    logging_backend: Backends = Field(
        (), description="trackers: a name, a list, a comma-separated text, or package.module.Class; metrics.jsonl is always written"
    )
    save_dir: Folder = Field("save", description="folder in which each run has its folder")
    save_freq: int = Field(10, ge=0, description="epochs between two checkpoints; 0 = only the last one, which is always saved")
    save_minutes: float | None = Field(
        None,
        gt=0,
        description="also save at the end of an epoch when this many minutes have passed since the last checkpoint; null = save_freq alone",
    )
    save_model_only: bool = Field(
        True, description="true = save only weights; false = also save the training state that an exact resumption needs"
    )
    keep_last_n: int | None = Field(None, ge=1, description="number of checkpoints to keep; null = all")
    save_formats: Formats = Field(
        (), description="formats in which a LoRA is also saved, each time; every checkpoint has those of diffusers and PEFT; see ff-export"
    )
    push_to_hub: Name | None = Field(
        None,
        description="owner/name of a repository on the hub, private if it is made: at the end of the run its last (or best, see keep_best) "
        "weights are uploaded there, with a model card made from the run; null = none",
    )
    keep_best: Name | None = Field(
        None,
        description="metric of an evaluation, such as eval/reward_mean, by which the best checkpoint is kept: a checkpoint is saved after "
        "each evaluation that is better than all before, and keep_last_n does not delete it; null = none",
    )
    rollouts_gb: float = Field(
        20.0,
        ge=0,
        description="when a signal stops a run, keep at most this many GB of the unfinished epoch's samples, to resume from them",
    )
    num_samples: int = Field(16, ge=0, description="images to log in an epoch that logs images")
    verbose: bool = Field(False, description="more lines on the terminal, and the full traceback of the error that ends a run")
