"""`log.save_formats`: the trained LoRA beside each checkpoint, as other programs read it."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from flow_factory.checkpoints.checkpoint import CheckpointError
from flow_factory.checkpoints.lora_file import lora_in
from flow_factory.checkpoints.lora_formats import ORIGINAL, place_of, widths, write_lora
from flow_factory.checkpoints.original_names import names_of, targets_of
from flow_factory.config import RunConfig
from flow_factory.models.base import ModelAdapter
from flow_factory.policy.policy import Policy, layers_of_lora
from flow_factory.runs.provenance import provenance


def require_formats(config: RunConfig, sketch: ModelAdapter | None) -> None:
    """Args:
        sketch: the checkpoint without its weights; None: it is not on this machine, and nothing is checked.

    Raises:
        CheckpointError: a format does not exist for this model, or has no name for a layer that is trained.
    """
    for format in ORIGINAL if sketch is not None else ():
        for component in config.model.target_components if format in config.log.save_formats else ():
            assert sketch is not None
            module = sketch.field.bare[component]
            try:
                names = names_of(type(module).__name__, format)
                targets_of(names, layers_of_lora(sketch, module, component, config.model), widths(module))
            except CheckpointError as error:
                raise CheckpointError(f"log.save_formats: {error}") from error


class SaveFormats:
    """Writes what a checkpoint has not by itself, which is in the formats of diffusers and PEFT."""

    def __init__(self, config: RunConfig, run: Path):
        self.config, self.run = config, run
        self.formats = [format for format in config.log.save_formats if format in ORIGINAL]

    def write(self, folder: Path, name: str, policy: Policy, weights: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Args:
            folder: the checkpoint; each format has a folder in it.
            name: the checkpoint's.
            weights: of each transformer, as `collect` returns them.

        Raises:
            CheckpointError: see `write_lora`.
        """
        header = provenance(self.config, self.run, name) if self.formats else {}
        for format in self.formats:
            for component, module in policy.models.items():
                lora = lora_in(module, weights[component])
                place = place_of(folder / format, format, component, len(policy.models) > 1, f"{self.run.name}_{name}")
                write_lora(place, lora, format, component, type(module).__name__, widths(module), header)
