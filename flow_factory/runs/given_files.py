"""Checks of the LoRA files of an algorithm, such as a teacher's, before the model is loaded."""

from typing import Any

from flow_factory.algorithms import ALGORITHMS
from flow_factory.checkpoints.given_lora import given_digest, read_given
from flow_factory.checkpoints.lora_fit import form_of, require_fit
from flow_factory.checkpoints.original_names import linear_shapes
from flow_factory.config import OPDConfig, RunConfig
from flow_factory.models.base import ModelAdapter
from flow_factory.policy.targets import components_of, layers_of_lora

Shapes = dict[str, tuple[int, int]]
"""Of linear layers by name: (out, in)."""


def require_given_files(config: RunConfig, sketch: ModelAdapter | None) -> None:
    """Args:
        sketch: the checkpoint without its weights; None if it is not on this machine: then layers are not compared.

    Raises:
        CheckpointError: a file is missing or damaged, or cannot be converted to the form of the run's LoRA.
    """
    files = ALGORITHMS[config.train.trainer_type](config.train, config.scheduler).files
    for component in config.model.target_components if files else ():
        _, model, chosen = (None, {}, {}) if sketch is None else layers_of(config, sketch, component)
        for file in files.values():
            saved = read_given(file.key, file.path, component)
            require_fit(file.key, file.path, saved, form_of(config.model), model, chosen)


def layers_of(
    config: RunConfig, sketch: ModelAdapter, component: str
) -> tuple[Any, dict[str, tuple[int, int]], dict[str, tuple[int, int]]]:
    """A transformer, the shapes (out, in) of its linear layers, and of those that the run's LoRA is of.

    Raises:
        UserError: the checkpoint has no such component, or no such layers.
    """
    components_of(sketch, config.model)  # says which is not there
    module = sketch.field.bare[component]
    linear = linear_shapes(module)
    return module, linear, {name: linear[name] for name in layers_of_lora(sketch, module, component, config.model)}


def teachers_of(config: RunConfig) -> dict[str, list[str]]:
    """Name of each teacher -> its identity: the first digits of its files' sha256, and its data sets."""
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
