"""LoRA files whose weights an algorithm compares with, such as a teacher's: that they fit, before the model is loaded."""

from torch import nn

from flow_factory.algorithms import ALGORITHMS
from flow_factory.checkpoints.given_lora import given_digest, read_given, require_fit
from flow_factory.config import OPDConfig, RunConfig
from flow_factory.models.base import ModelAdapter
from flow_factory.policy.targets import components_of, layers_of_lora


def require_given_files(config: RunConfig, sketch: ModelAdapter | None) -> None:
    """Args:
        sketch: the checkpoint without its weights; None: it is not on this machine, and layers are not compared.

    Raises:
        CheckpointError: a file is not there, damaged, or of another form than can be kept beside the run's LoRA.
    """
    files = ALGORITHMS[config.train.trainer_type](config.train, config.scheduler).files
    for component in config.model.target_components if files else ():
        model, chosen = {}, {}
        if sketch is not None:
            components_of(sketch, config.model)  # says which is not there
            module = sketch.field.bare[component]
            model = {name: tuple(m.weight.shape) for name, m in module.named_modules() if isinstance(m, nn.Linear)}
            chosen = {name: model[name] for name in layers_of_lora(sketch, module, component, config.model)}
        for file in files.values():
            saved = read_given(file.key, file.path, component)
            require_fit(file.key, file.path, saved, config.model.lora_rank, model, chosen)


def teachers_of(config: RunConfig) -> dict[str, list[str]]:
    """What tells teachers from others, by their names: of each the beginning of its files' sha256, and its data sets."""
    if not isinstance(config.train, OPDConfig):
        return {}
    components = config.model.target_components
    return {
        teacher.name: [
            *(given_digest(f"train.teachers.{k}.path", teacher.path, component)[:12] for component in components),
            *(teacher.applicable_datasets or ()),
        ]
        for k, teacher in enumerate(config.train.teachers)
    }
