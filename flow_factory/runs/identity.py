"""The identity of a run in its training state: values that a resumed run must share, and values whose change it reports."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from json.encoder import encode_basestring_ascii
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from flow_factory.checkpoints.checkpoint import CheckpointError, plainly
from flow_factory.config import RunConfig
from flow_factory.config.datasets import trained_on
from flow_factory.data.columns import names_of
from flow_factory.data.inputs import inputs_of
from flow_factory.runs.given_files import teachers_of
from flow_factory.types import Row
from flow_factory.utils.tensor_file import read_header

BASE = "model.model_name_or_path"
DATA, SEVERAL = "data.dataset_dir", "data.datasets"
REFERENCE = "train.reference"
FORMS: dict[str, Any] = {"use_rslora": False, "use_dora": False, "rank_pattern": {}, "alpha_pattern": {}}
"""Keys of `model:` that decide what a LoRA's numbers mean, and their defaults."""
FORMER = {REFERENCE: "base", **{f"model.{key}": value for key, value in FORMS.items()}}
"""What states are of that do not say it, because it was not to be chosen yet."""
SAMPLE = 64
"""The number of bytes at the start, middle and end of each tensor that enter its fingerprint."""


def identity_of(config: RunConfig, data: Mapping[str, str]) -> dict[str, Any]:
    """The identity in a state: `must`, the model and the algorithm, and `may`, values that a resumed run may change.

    Learning rate, betas, weight decay, schedule and clip ranges are in neither: the config decides them.

    Args:
        data: name of each data set -> the `DataFingerprint` of its training rows.
    """
    model, train = config.model, config.train
    must: dict[str, Any] = {
        "model.model_type": model.model_type, "model.finetune_type": model.finetune_type,
        "model.target_components": list(model.target_components), "train.trainer_type": train.trainer_type,
        REFERENCE: train.reference,
        BASE: {name: base_fingerprint(model.model_name_or_path, name) for name in model.target_components},
    }  # fmt: skip
    if model.finetune_type == "lora":
        must |= {"model.lora_rank": model.lora_rank, "model.lora_alpha": model.lora_alpha}
        must |= {f"model.{key}": getattr(model, key) for key in FORMS}
    datasets = trained_on(config)
    names = [dataset.name for dataset in datasets if dataset.name] or None
    may: dict[str, Any] = {SEVERAL: names}
    may |= {f"{SEVERAL}.{d.name}" if names else DATA: [data[d.name], d.weight] if names else data[d.name] for d in datasets}
    may["train.seed"] = train.seed
    for key in ("height", "width", "num_inference_steps", "guidance_scale", "group_size", "unique_sample_num_per_epoch"):
        may[f"train.{key}"] = getattr(train, key)
    may["rewards"] = {r.name: [r.reward_model, r.weight, *filter(None, [r.applicable_datasets])] for r in config.rewards}
    may |= {f"train.teachers.{name}": identity for name, identity in teachers_of(config).items()}
    return json.loads(json.dumps({"must": must, "may": may}))


def other_run(saved: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    """The reason why a saved state is of another model or algorithm; None if it is not."""
    there = saved.get("must")
    if not isinstance(there, dict):
        return "it does not name its run"
    for key, value in here["must"].items():
        if key == BASE and isinstance(there.get(key), dict):
            known = {name: digest for name, digest in value.items() if digest is not None and there[key].get(name) is not None}
            if any(there[key][name] != digest for name, digest in known.items()):
                return f"{BASE} has other weights than it was trained on"
        elif there.get(key, FORMER.get(key)) != value:
            return f"{key} was {json.dumps(there.get(key))[:80]}, and is {json.dumps(value)[:80]}"
    return None


def changes(saved: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[str]:
    """A line for each value of `may` that has changed."""
    there = saved.get("may")
    for key, value in here["may"].items():
        before = there.get(key, None if key == SEVERAL else value) if isinstance(there, dict) else value  # older states had one data set
        if before == value:
            continue
        rows = "has other rows than before" if key == DATA else "has other rows or another weight than before"
        was = rows if key == DATA or key.startswith(f"{SEVERAL}.") else f"was {json.dumps(before)[:80]} and is {json.dumps(value)[:80]}"
        yield f"{key} {was}"


class DataFingerprint:
    """A fingerprint of the prompts and file names of rows, independent of the folder. It is called with each row."""

    def __init__(self) -> None:
        self._digest, self._rows = hashlib.sha256(), 0

    def __call__(self, row: Row) -> None:
        names = [*names_of(row.images), *names_of(row.videos)]
        names += [text for name, _, files in inputs_of(row) for text in (name, *names_of(files))]
        parts = ("null" if text is None else encode_basestring_ascii(text) for text in (row.prompt, row.negative_prompt, *names))
        self._digest.update(f"{', ' if self._rows else '['}[{', '.join(parts)}]".encode())
        self._rows += 1

    def hexdigest(self) -> str:
        """sha256 of a JSON list of the rows, each a list: prompt, negative prompt or null, names of files."""
        whole = self._digest.copy()
        whole.update(b"]" if self._rows else b"[]")
        return whole.hexdigest()


def base_fingerprint(name: str, component: str) -> str | None:
    """sha256 of a component's weights on disk: the name, dtype, shape and 64 bytes at three places of each tensor.

    It distinguishes models of one architecture without reading them, and does not depend on the division into files. None without
    safetensors files: then nothing is compared.

    Raises:
        CheckpointError: a file is damaged.
    """
    folder = Path(name) / component
    if not Path(name).is_dir():
        with suppress(HFValidationError):  # not a hub name either; loading reports it
            found = try_to_load_from_cache(name, f"{component}/config.json")
            folder = Path(found).parent if isinstance(found, str) else folder
    return _fingerprint(sorted(folder.glob("*.safetensors")))


def checkpoint_fingerprint(checkpoint: Path) -> str | None:
    """The same fingerprint of a checkpoint's weights: the file of a LoRA, or a folder of either kind.

    Raises:
        CheckpointError: a file is damaged.
    """
    state = checkpoint / "state"
    files = [file for file in sorted(checkpoint.rglob("*.safetensors")) if state not in file.parents]
    return _fingerprint([checkpoint] if checkpoint.is_file() else files)


def _fingerprint(files: Sequence[Path]) -> str | None:
    plain = [file for file in files if file.name.count(".") == 1]  # variants such as .fp16.safetensors count only without others
    samples = sorted(sample for file in plain or files for sample in _samples(file))
    return hashlib.sha256(b"".join(samples)).hexdigest() if samples else None


def _samples(file: Path) -> Iterator[bytes]:
    with plainly(file, "cannot be read"):
        try:
            tensors = read_header(file)
        except ValueError as error:
            raise CheckpointError(f"{file} {error}; download it again") from error
    with file.open("rb") as stream:
        for name, tensor in tensors.items():
            sample = json.dumps([name, tensor.dtype, tensor.shape]).encode()
            for place in (tensor.begin, (tensor.begin + tensor.end) // 2, max(tensor.begin, tensor.end - SAMPLE)):
                stream.seek(place)
                sample += stream.read(min(SAMPLE, tensor.end - place))
            yield sample
