"""The trained weights of a training state, beside which a checkpoint reports their average."""

from pathlib import Path

import torch
from torch import Tensor

from flow_factory.checkpoints.checkpoint import CheckpointError, has_state, plainly
from flow_factory.checkpoints.state_files import contents, read
from flow_factory.utils.tensor_file import DTYPES


def last_weights(checkpoint: Path, component: str) -> dict[str, Tensor]:
    """Those of one transformer, by its parameters' names.

    Raises:
        CheckpointError: there is no training state, it is damaged, or it has none of this transformer.
    """
    if not has_state(checkpoint):
        raise CheckpointError(f"{checkpoint} has no training state (log.save_model_only: true), and no other weights than the saved ones")
    index, _ = contents(checkpoint)
    begin = f"weights/policy/{component}."
    wanted = {name: part for name, part in index.tensors.items() if name.startswith(begin)}
    if not wanted:
        raise CheckpointError(f"{checkpoint}: its training state has no weights of {component}")
    found = {name: torch.empty(part.shape, dtype=DTYPES[part.dtype]) for name, part in wanted.items()}
    with plainly(checkpoint, "is damaged"):
        read(checkpoint / "state", index, found)
    return {name.removeprefix(begin): tensor for name, tensor in found.items()}
