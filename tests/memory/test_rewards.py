"""The weights of rewards in the estimate: counted from headers, once a model, and named where they cannot be."""

import json
import math
import os
import struct
from pathlib import Path

import pytest
import yaml
from huggingface_hub import constants

from flow_factory.config import RunConfig, load_config
from flow_factory.memory.fit import keys_to_fit, memory_lines
from flow_factory.memory.rewards import reward_memory
from flow_factory.utils.tensor_file import read_header
from tests.tiny.clip import save_clip
from tests.tiny.run import write_run


def config_of(folder: Path, rewards: list[dict], held: list[dict] | None = None) -> RunConfig:
    tree = yaml.safe_load(write_run(folder).read_text()) | {"rewards": rewards} | ({"eval_rewards": held} if held else {})
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tree))
    return load_config(folder / "tiny.yaml")


def judge_of(folder: Path, parameters: int) -> Path:
    """A judge's folder whose weights are a hole of so many bfloat16."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    text = json.dumps({"w": {"dtype": "BF16", "shape": [parameters], "data_offsets": [0, 2 * parameters]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(folder / "model.safetensors", 8 + len(text) + 2 * parameters)
    return folder


def test_a_model_counts_once_in_the_dtype_of_its_entry(tmp_path: Path) -> None:
    clip = save_clip(tmp_path / "clip")
    parameters = sum(math.prod(t.shape) for t in read_header(Path(clip) / "model.safetensors").values())
    entry = {"reward_model": "CLIP", "model_name_or_path": str(clip), "processor_name_or_path": str(clip)}
    held = [entry | {"name": "again", "weight": 0}, entry | {"name": "half", "dtype": "bf16"}, entry | {"name": "host", "device": "cpu"}]
    held.append(entry | {"name": "next", "device": "cuda:1"})
    found = reward_memory(config_of(tmp_path, [entry, {"reward_model": "jpeg_compressibility"}], held))
    assert [(p.name, round(p.gb * 1e9), p.phase, p.host) for p in found.parts] == [
        ("weights of the reward clip", 4 * parameters, "always", False),
        ("weights of the reward half", 2 * parameters, "always", False),
        ("weights of the reward host", 4 * parameters, "always", True),
        ("weights of the rewards", 6 * parameters, "encoding", False),
        ("weights of the rewards", 4 * parameters, "encoding", True),
    ]
    assert found.unknown == ["not counted: reward next: its 0.00 GB are on cuda:1"]


def test_a_judge_decides_whether_a_run_fits_and_what_is_elsewhere_is_named(tmp_path: Path) -> None:
    small, large = (judge_of(tmp_path / f"judge{n}", n) for n in (1000, 100_000_000))
    for folder, fits in ((small, True), (large, False)):
        judge = {"reward_model": "vlm_yes_no", "name": "judge", "model_name_or_path": str(folder)}
        config = config_of(tmp_path, [judge, {"reward_model": "PickScore"}])
        assert keys_to_fit(config, gpu=1.1) == [], "what init writes is the same, whatever this machine has of the rewards"
        lines, found = memory_lines(config, gpu=1.1)
        assert found == fits and any(line.endswith("GB  weights of the reward judge") for line in lines)
        assert "not counted: reward pickscore: yuvalkirstain/PickScore_v1 is not on this machine" in lines
        (peak,) = (line for line in lines if "at the peak, estimated, of rewards only the weights; " in line)
        assert peak.endswith(f"{'fits' if fits else 'does NOT fit'} a 1 GB GPU without the rewards that are not counted")


def test_the_cache_of_this_machine_is_not_read() -> None:
    assert os.environ["HF_HOME"] in constants.HF_HUB_CACHE and not Path(constants.HF_HUB_CACHE).exists()


OWN = """
from flow_factory.rewards import PointwiseRewardModel
from flow_factory.rewards.pick_score import PickScoreReward


class Silent(PointwiseRewardModel):
    required_fields = ("image",)
    loads_weights = True

    def __call__(self, image, **others):
        return [0.0] * len(image)


class Broken(Silent):
    @classmethod
    def require_files(cls, config, now):
        {}["weights"]


class Inherits(PickScoreReward):
    pass
"""


@pytest.mark.parametrize(("name", "line"), [
    ("Silent", "its class has loads_weights, and its require_files asks neither require_folder nor require_file for weights"),
    ("Broken", "reward 'it' failed: KeyError: 'weights' ("), ("Inherits", "yuvalkirstain/PickScore_v1 is not on this machine"),
])  # fmt: skip
def test_a_reward_that_does_not_say_what_it_loads_is_named(tmp_path: Path, name: str, line: str) -> None:
    (tmp_path / "own_weights.py").write_text(OWN)
    found = reward_memory(config_of(tmp_path, [{"reward_model": f"own_weights.{name}", "name": "it"}]))
    assert len(found.unknown) == 1 and found.unknown[0].startswith(f"not counted: reward it: {line}") and not found.parts


def test_a_remote_reward_takes_no_memory(tmp_path: Path) -> None:
    remote = {"reward_model": "vlm_yes_no", "name": "judge"}
    assert reward_memory(config_of(tmp_path, [remote])).unknown == []
