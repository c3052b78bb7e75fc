"""Rewards in a file of the current folder, written as the public template and guide have them: the command trains on them."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from flow_factory.checkpoints.lora_file import LORA_FILE
from tests.conftest import cells
from tests.tiny.forked import forked
from tests.tiny.pipelines import SMALL, saved
from tests.tiny.run import logged, write_run

MINE = """
from typing import List, Optional

import torch
from accelerate import Accelerator
from PIL import Image

from flow_factory.hparams import *
from flow_factory.rewards.abc import GroupwiseRewardModel, PointwiseRewardModel, RewardModelOutput


class MyRewardModel(PointwiseRewardModel):
    def __init__(self, config: RewardArguments, accelerator: Accelerator):
        super().__init__(config, accelerator)
        self.scale = config.scale

    @torch.no_grad()
    def __call__(
        self,
        prompt: List[str],
        image: Optional[List[Image.Image]] = None,
        video: Optional[List[List[Image.Image]]] = None,
        condition_images: Optional[List] = None,
        condition_videos: Optional[List] = None,
        **kwargs,
    ) -> RewardModelOutput:
        first = image if video is None else [frames[0] for frames in video]
        light = [[self.scale * sum(picture.convert("L").tobytes())] for picture in first]
        return RewardModelOutput(rewards=torch.tensor(light, device=self.device), extra_info={})


class MyGroupwiseRewardModel(GroupwiseRewardModel):
    def __call__(self, prompt, image=None, video=None, condition_images=None, condition_videos=None) -> RewardModelOutput:
        assert len(prompt) == 4 and len(set(prompt)) == 1
        sizes = torch.tensor([float(len(set(picture.tobytes()))) for picture in image])
        return RewardModelOutput(rewards=sizes.argsort().argsort() / len(sizes))


class Loud(PointwiseRewardModel):
    required_fields = ("audio",)
    use_tensor_inputs = True

    def __call__(self, prompt, audio, audio_sample_rate, **kwargs) -> RewardModelOutput:
        assert all(wave.ndim == 2 and wave.dtype == torch.float32 and wave.abs().max() <= 1 for wave in audio)
        assert audio_sample_rate == [16000] * len(audio)
        return RewardModelOutput(rewards=[wave.square().mean().sqrt() for wave in audio])
"""


@pytest.mark.slow
@cells("family", "other", [("flux1", "MyGroupwiseRewardModel"), ("ltx2_t2av", "Loud")], [("flux1", "MyGroupwiseRewardModel")])
def test_a_file_of_ones_own_rewards_is_trained_on(tmp_path: Path, family: str, other: str) -> None:
    """Of the sound, the layers that make it learn."""
    write_run(tmp_path)
    (tmp_path / "my_reward.py").write_text(MINE)
    sizes = {f"{section}.{key}": value for section in ("train", "eval") for key, value in SMALL[family].items()}
    keys = {"model.model_name_or_path": saved(family), "model.model_type": family, "train.guidance_scale": 1.0, "eval.group_size": 4}
    rewards = (
        f"rewards=[{{reward_model: my_reward.MyRewardModel, name: light, scale: 0.001}}, {{reward_model: my_reward.{other}, name: other}}]"
    )
    done = forked("tiny.yaml", *(f"{key}={value}" for key, value in {**sizes, **keys}.items()), rewards, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    lines = logged(run := tmp_path / "save" / "run")
    assert [line["step"] for line in lines] == [0, 1, 1, 2, 2]
    for line in (lines[1], lines[3]):
        assert line["train/on_policy_error"] == 0 and line["train/grad_norm"] > 0
        assert line["train/reward_light_std"] > 0 and line["train/reward_other_std"] > 0 and line["train/missing_scores"] == 0
    weights = load_file(run / "checkpoints" / "epoch_2" / LORA_FILE)
    moved = [name for name, weight in weights.items() if "lora_B" in name and weight.any()]
    assert moved and any("audio" in name for name in moved) == (other == "Loud")
