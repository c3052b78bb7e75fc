"""The tiny run with two data sets: words and shapes, each with a reward of its own, and one that scores both."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from flow_factory.rewards import PointwiseRewardModel, RewardModelOutput
from tests.tiny.run import TRAIN, write_rows, write_run

WORDS, SHAPES = [f"word {k}" for k in range(7)], TRAIN
DATASETS: list[dict[str, Any]] = [
    {"name": "words", "dataset_dir": "{folder}/words", "train": {"weight": 1}, "eval": {"num_inference_steps": 2, "max_rows": 2}},
    {"name": "shapes", "dataset_dir": "{folder}/data", "train": {"weight": 2}, "eval": {"resolution": 48}},
]
REWARDS: list[dict[str, Any]] = [
    {"reward_model": f"{__name__}.OfWords", "applicable_datasets": ["words"], "batch_size": 3},
    {"reward_model": f"{__name__}.OfShapes", "applicable_datasets": ["shapes"], "batch_size": 3},
    {"reward_model": "tests.tiny.rewards.Bright", "name": "both", "weight": {"words": 0.5, "shapes": 0.01}},
]


class OfWords(PointwiseRewardModel):
    """Brightness, of the pictures of one data set alone, in hundreds."""

    required_fields = ("prompt", "image")
    scale = 100.0

    def mine(self, prompt: str) -> bool:
        return prompt.startswith("word")

    def __call__(self, prompt: list[str], image: list[Any], **_: Any) -> RewardModelOutput:
        assert all(map(self.mine, prompt)), "a row of another data set"
        return RewardModelOutput([self.scale * float(np.asarray(one).mean()) / 255 for one in image])


class OfShapes(OfWords):
    """The same of the other one, in units."""

    scale = 1.0

    def mine(self, prompt: str) -> bool:
        return not super().mine(prompt)


def write_two(folder: Path, datasets: Sequence[dict[str, Any]] = DATASETS, rewards: Sequence[dict[str, Any]] = REWARDS) -> Path:
    """The YAML."""
    file = write_run(folder)
    for split, prompts in (("train", WORDS), ("test", WORDS[:3])):
        write_rows(folder / "words" / f"{split}.jsonl", [{"prompt": p} for p in prompts])
    tree = yaml.safe_load(file.read_text())
    del tree["data"]["dataset_dir"]
    tree["data"]["datasets"] = [d | {"dataset_dir": d["dataset_dir"].format(folder=folder)} for d in datasets]
    tree["rewards"] = list(rewards)
    tree["train"]["unique_sample_num_per_epoch"] = 4
    file.write_text(yaml.safe_dump(tree, sort_keys=False))
    return file
