"""Valid configs with surprising effects: what is said of them, and where nothing is."""

from pathlib import Path

import pytest

from flow_factory.config import load_config
from flow_factory.runs.notices import remarks

YAML = """\
data: {dataset_dir: data}
model: {model_type: sd3-5, model_name_or_path: some/model, finetune_type: lora}
train: {trainer_type: grpo, guidance_scale: 1, num_inference_steps: 8, group_size: 4, kl_beta: 0.1}
eval: {guidance_scale: 1, num_inference_steps: 8}
rewards: {reward_model: shapes}
"""
TURBO, TAUGHT = "model.model_name_or_path=Tongyi-MAI/Z-Image-Turbo", ("train.trainer_type=tdm", "rewards=null", "train.kl_beta=null")
KLEIN = ("model.model_type=flux2-klein",)
LOADED = ("model.resume_path=saves/sft", "model.resume_type=lora")


@pytest.mark.parametrize(("overrides", "said"), [
    ((), None),
    ((TURBO,), None),
    ((TURBO, "eval.num_inference_steps=28"), "is distilled for few steps by its name: draw what is trained on, and evaluate, in as many"),
    ((TURBO, *TAUGHT), None),
    ((TURBO, *TAUGHT, "train.real_guidance_scale=4"), "is distilled by its name, and has no guidance to give; null"),
    (("train.trainer_type=nft", "train.guidance_scale=4.5"), "nft rolls out with classifier-free guidance and trains without"),
    (("train.trainer_type=nft", "train.guidance_scale=4.5", *KLEIN, "model.model_name_or_path=x/FLUX.2-klein-4B"), None),
    (("train.trainer_type=nft", "train.guidance_scale=4.5", *KLEIN, "model.model_name_or_path=x/FLUX.2-klein-base-4B"), "rolls out with"),
    (LOADED, "train.reference: base: the reference is the checkpoint without the weights of model.resume_path, and pulls the policy"),
    ((*LOADED, "train.reference=start"), "train.reference: start: the reference is the weights of model.resume_path"),
    ((*LOADED, "train.kl_beta=0"), None),
])  # fmt: skip
def test_a_surprise_is_one_line(tmp_path: Path, overrides: tuple[str, ...], said: str | None) -> None:
    (tmp_path / "run.yaml").write_text(YAML)
    told = ("distilled", "train.reference", "rolls out with")
    lines = [line for line in remarks(load_config(tmp_path / "run.yaml", overrides)) if any(word in line for word in told)]
    assert len(lines) == (said is not None) and (said is None or said in lines[0])
