"""The kinds of files that people bring along: how each is damaged, and what reads it. Those of the cache are in `cache_formats`."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from hypothesis import strategies as st
from PIL import Image

from flow_factory.check import check
from flow_factory.checkpoints.lora_file import LORA_FILE
from flow_factory.checkpoints.model_files import load_model, save_model
from flow_factory.checkpoints.state_files import INDEX, PROGRESS
from flow_factory.config import dump_config, load_config
from flow_factory.config.engine import engine_of
from flow_factory.data.cache import ConditionCache
from flow_factory.models.loading import load_adapter, sketch_adapter
from flow_factory.runs.rows import check_files, read_training, row_checks
from flow_factory.runs.training_state import load
from flow_factory.utils.errors import UserError
from tests.checkpoints.states import run, save, train, values
from tests.conftest import flux, policy_over
from tests.tiny.cache_formats import encoded, structure
from tests.tiny.damage import YAML_TEXTS, Format, safetensors_damage, text_damage, to_json, to_rows, to_yaml
from tests.tiny.run import ROOT, checkpoint, write_run


def config(folder: Path) -> Format:
    """What is taken is written by `dump_config` and read again as the same; a check then says its line too."""
    write_run(folder)
    texts = [(folder / "tiny.yaml").read_text(), *(path.read_text() for path in sorted((ROOT / "examples").glob("*/*/*.yaml"))[::3])]
    file, again = folder / "damaged.yaml", folder / "again.yaml"

    def read(data: bytes) -> None:
        file.write_bytes(data)
        loaded = load_config(file)
        again.write_text(dump_config(loaded))
        assert load_config(again) == loaded

    return Format(st.one_of([text_damage(yaml.safe_load(text), to_yaml, YAML_TEXTS) for text in texts]), read, lines=True)


def override(folder: Path) -> Format:
    """`section.key=value`."""
    file = write_run(folder)
    tree = yaml.safe_load(file.read_text())
    keys = [f"{section}.{key}" for section, inner in tree.items() if isinstance(inner, dict) for key in inner]
    values = st.sampled_from([*YAML_TEXTS.values(), "1e-4", "[1, 2]", "{a: 1}", "", "=", "\x85", "\ud83d"])
    pieces = st.sampled_from(
        [*keys, "", ".", "=", "rewards.0.name", "rewards.9", "train", "train.learning_rate.x", "0.1", "\u0661.x", "\0"]
    )
    texts = st.one_of(st.builds("{}={}".format, pieces, values), st.builds("{}{}".format, pieces, pieces), st.text(max_size=20))
    return Format(texts, lambda text: load_config(file, [text]), lines=True)


def engine(folder: Path) -> Format:
    """accelerate's own YAML, which `config_file` names."""
    trees = [yaml.safe_load(path.read_text()) for path in sorted((ROOT / "flow_factory/launch_files").glob("*.yaml"))]
    file = folder / "engine.yaml"

    def read(data: bytes) -> None:
        file.write_bytes(data)
        engine_of(str(file))

    return Format(st.one_of([text_damage(tree, to_yaml, YAML_TEXTS) for tree in trees]), read, lines=True)


KONTEXT = ("model.model_type=flux1-kontext",)
OFFLINE = ("train.trainer_type=dpo", "train.offline=true", "train.group_size=2")


def rows(folder: Path) -> Format:
    """Rows of a family that is given pictures."""
    return _rows(
        folder, [{"prompt": "a cat", "image": "a.png"}, {"prompt": "b", "negative_prompt": "c", "images": ["a.png"], "n": 1}], *KONTEXT
    )


def pairs(folder: Path) -> Format:
    """Rows of offline DPO."""
    return _rows(folder, [{"prompt": p, "chosen": "a.png", "rejected": "b.png"} for p in "ab"], *OFFLINE)


def _rows(folder: Path, tree: list[dict[str, Any]], *keys: str) -> Format:
    """Every use of a row in the hour before training: columns, pictures, the key of its encoding."""
    write_run(folder)
    (folder / "data" / "images").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (64, 64)).save(folder / "data" / "images" / name)
    right = load_config(folder / "tiny.yaml", keys)
    file = folder / "data" / "train.jsonl"

    def read(data: bytes) -> None:
        file.write_bytes(data)
        rows = read_training(right, lambda dataset: row_checks(right, (), True))
        check_files(right, rows, {"": rows}, progress=False)
        for row in rows:
            ConditionCache(folder / "cache", "").key(row)

    return Format(text_damage(tree, to_rows), read)


def index(folder: Path) -> Format:
    """The part of a training state that says what is in it."""
    return _state(folder, INDEX)


def progress(folder: Path) -> Format:
    """The part of a training state that says how far it has come, with a checksum that is right."""
    return _state(folder, PROGRESS)


def _state(folder: Path, name: str) -> Format:
    """A file of a training state. A refusal changes nothing of the run that was to go on."""
    first = run()
    train(first, range(2))
    state = save(folder / "epoch_1", first) / "state"
    file, contents = state / name, json.loads((state / INDEX).read_bytes())

    def read(data: bytes) -> None:
        file.write_bytes(data)
        if name == PROGRESS:
            contents["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            (state / INDEX).write_text(json.dumps(contents))
        second = run()
        before = values(second)
        try:
            load(folder / "epoch_1", *second[1:])
        except UserError:
            assert all(torch.equal(before[k], v) for k, v in values(second).items())
            raise

    return Format(text_damage(json.loads(file.read_bytes()), to_json), read)


def lora(folder: Path) -> Format:
    policy = policy_over(flux(), finetune_type="lora", target_modules=("attn.to_q",), lora_rank=4, lora_alpha=12)
    save_model(folder, policy, type(flux().pipe))
    return _weights(folder / LORA_FILE, lambda: load_model(folder, policy))


def full(folder: Path) -> Format:
    policy = policy_over(flux(), finetune_type="full", master_weight_dtype="fp32", target_modules=("attn.to_q",))
    save_model(folder, policy, type(flux().pipe))
    return _weights(next(folder.glob("transformer/*.safetensors")), lambda: load_model(folder, policy))


def base(folder: Path) -> Format:
    """The base checkpoint's weights, as `--check` and a start read them."""
    shutil.copytree(checkpoint(), folder / "flux")
    write_run(folder)
    right = load_config(folder / "tiny.yaml", [f"model.model_name_or_path={folder / 'flux'}"])

    def read() -> None:
        check(right)
        load_adapter(str(folder / "flux"), "flux1")

    return _weights(folder / "flux" / "vae" / "diffusion_pytorch_model.safetensors", read)


def _weights(file: Path, read: Callable[[], Any]) -> Format:
    return Format(safetensors_damage(file.read_bytes()), lambda data: (file.write_bytes(data), read()))


def base_config(folder: Path) -> Format:
    """The base checkpoint's configs, as `--check` reads them."""
    shutil.copytree(checkpoint(), folder / "flux")
    files = [
        folder / "flux" / f for f in ("model_index.json", "transformer/config.json", "vae/config.json", "scheduler/scheduler_config.json")
    ]
    whole = {file: json.loads(file.read_text()) for file in files}
    damaged = st.one_of([text_damage(tree, to_json).map(lambda data, file=file: (file, data)) for file, tree in whole.items()])

    def read(given: tuple[Path, bytes]) -> None:
        file, data = given
        file.write_bytes(data)
        try:
            sketch_adapter(str(folder / "flux"), "flux1")
        finally:
            file.write_text(json.dumps(whole[file]))

    return Format(damaged, read)


FORMATS: dict[Callable[[Path], Format], int] = {
    config: 150, override: 100, engine: 60, rows: 150, pairs: 50, index: 40, progress: 30, encoded: 60, lora: 30, full: 10, base: 10,
    base_config: 30, structure: 60,
}  # fmt: skip
"""And how many examples of each: half as many in the fast part, five times as many in the exhaustive one."""
