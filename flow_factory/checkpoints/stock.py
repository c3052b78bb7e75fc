"""Loading of trained weights into the stock pipeline with diffusers' own readers, as a user of the checkpoint does."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from flow_factory.checkpoints.checkpoint import CheckpointError, model_kind, plainly
from flow_factory.checkpoints.lora_file import knows_transformers, put_by_peft
from flow_factory.checkpoints.model_files import full_weights, lora_of_component


def put_weights(pipe: Any, checkpoint: Path, components: Sequence[str]) -> None:
    """Loads the checkpoint's weights into the pipeline's transformers: adds a LoRA, or replaces all weights.

    A present LoRA is removed first. Replaced weights can only be restored by loading the pipeline again.

    Args:
        checkpoint: a folder, or the file of a LoRA.
        components: the trained transformers.

    Raises:
        CheckpointError: the checkpoint lacks the weights of a transformer, is damaged, or does not fit.
    """
    kind = model_kind(checkpoint)
    for name in components:
        (_put_lora if kind == "lora" else _put_full)(pipe, checkpoint, name)


def _put_lora(pipe: Any, checkpoint: Path, name: str) -> None:
    module = getattr(pipe, name)
    file = lora_of_component(checkpoint, name)
    if getattr(module, "peft_config", None) and hasattr(module, "unload_lora"):
        module.unload_lora()
    with plainly(file, "does not fit this pipeline"):
        if not hasattr(module, "load_lora_adapter"):
            put_by_peft(module, file)
        elif name == "transformer" and knows_transformers(pipe):
            pipe.load_lora_weights(file.parent, weight_name=file.name)
        else:
            module.load_lora_adapter(file.parent, weight_name=file.name, prefix="transformer", use_safetensors=True)
    if not getattr(module, "peft_config", None):
        raise CheckpointError(f"{file} names no layer of this pipeline's {name}: it is a LoRA of another model")


def _put_full(pipe: Any, checkpoint: Path, name: str) -> None:
    load_full(getattr(pipe, name), full_weights(checkpoint, name, getattr(pipe, name)), checkpoint, name)


def load_full(module: Any, weights: Mapping[str, Tensor], checkpoint: Path, name: str) -> None:
    """Replaces all weights of a transformer by those of a checkpoint.

    Raises:
        CheckpointError: they do not fit.
    """
    try:
        module.load_state_dict(weights)
    except (RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{checkpoint} does not fit this pipeline's {name}: {' '.join(str(error).split())[:300]}") from error
