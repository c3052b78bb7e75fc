"""LoRA files to learn from: random matrices for the layers of a checkpoint that a run's own LoRA is of."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from flow_factory.checkpoints.lora_file import LORA_FILE
from flow_factory.config import OPDConfig, RunConfig
from flow_factory.models.loading import sketch_adapter
from flow_factory.policy.targets import layers_of_lora
from flow_factory.runs.fitting import checkpoint_of


def write_lora(file: Path, layers: Mapping[str, tuple[int, ...]], rank: int = 2, seed: int = 0, size: float = 0.1) -> None:
    """`layers`: (out, in) of each."""
    file.parent.mkdir(parents=True, exist_ok=True)
    generator, tensors = torch.Generator().manual_seed(seed), {}
    for name, (out, into) in layers.items():
        tensors[f"transformer.{name}.lora_A.weight"] = size * torch.randn(rank, into, generator=generator)
        tensors[f"transformer.{name}.lora_B.weight"] = size * torch.randn(out, rank, generator=generator)
    save_file(tensors, file, metadata={"format": "pt"})


def write_teachers(config: RunConfig, rank: int = 2, size: float = 0.5) -> None:
    """Each teacher that a config names, where it names it, for the layers of its checkpoint."""
    assert isinstance(config.train, OPDConfig)
    sketch = sketch_adapter(*checkpoint_of(config))
    for seed, teacher in enumerate(config.train.teachers):
        for component in config.model.target_components:
            module = sketch.field.bare[component]
            shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
            layers = {name: shapes[f"{name}.weight"] for name in layers_of_lora(sketch, module, component, config.model)}
            folder = Path(teacher.path) if component == "transformer" else Path(teacher.path) / component
            write_lora(folder / LORA_FILE, layers, rank, seed, size)


def taught(config: RunConfig, folder: Path) -> RunConfig:
    """The config with its teachers, if it has any, written into a folder; of a checkpoint that is not here, with some layers."""
    if not isinstance(config.train, OPDConfig):
        return config
    teachers = tuple(teacher.model_copy(update={"path": str(folder / teacher.name)}) for teacher in config.train.teachers)
    config = config.model_copy(update={"train": config.train.model_copy(update={"teachers": teachers})})
    if Path(config.model.model_name_or_path).is_dir():
        write_teachers(config)
    for teacher in teachers:
        if not Path(teacher.path).exists():
            write_lora(Path(teacher.path) / LORA_FILE, {"a": (4, 4)})
    return config
