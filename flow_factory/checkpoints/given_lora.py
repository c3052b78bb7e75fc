"""A LoRA of a file as a copy of the run's own: one of a lower rank, another scale or fewer layers is the same function in that form."""

from pathlib import Path

from flow_factory.checkpoints.checkpoint import CheckpointError, newest
from flow_factory.checkpoints.lora_file import Lora
from flow_factory.checkpoints.model_files import lora_at, lora_of_component
from flow_factory.data.fingerprints import file_sha256
from flow_factory.utils.errors import file_errors

READABLE = "name a safetensors file of a LoRA, its folder, or a run's folder"


def given_file(key: str, path: str, component: str) -> Path:
    """Where a transformer's LoRA is.

    Raises:
        CheckpointError: there is none; the message begins with the config key.
    """
    with file_errors(key, path, READABLE, CheckpointError):
        place = newest(Path(path))
        if not place.exists():
            raise CheckpointError(f"{key}: {path} is not a folder or file; {READABLE}")
        try:
            return lora_of_component(place, component)
        except CheckpointError as error:
            raise CheckpointError(f"{key}: {error}; {READABLE}") from error


def read_given(key: str, path: str, component: str) -> Lora:
    """A transformer's LoRA.

    Raises:
        CheckpointError: there is none, it is damaged, or of another kind.
    """
    file = given_file(key, path, component)
    try:
        return lora_at(file, component)[1]
    except CheckpointError as error:
        raise CheckpointError(f"{key}: {error}") from error


def given_digest(key: str, path: str, component: str) -> str:
    """sha256 of a transformer's file."""
    return file_sha256(str(given_file(key, path, component)))
