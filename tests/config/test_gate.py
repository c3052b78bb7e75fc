"""What the YAML may say of GARDO's gate, reference and diversity, and what is refused with which words."""

from pathlib import Path

import pytest

from flow_factory.config import ConfigError, load_config

YAML = """\
data:
  dataset_dir: data
model:
  model_type: flux1
  model_name_or_path: tiny
  finetune_type: lora
train:
  trainer_type: grpo
  group_size: 4
  unique_sample_num_per_epoch: 2
  kl_beta: 0.04
  kl_gate_share: 0.1
  kl_gate_bounds: [0.02, 0.2]
  kl_reset_threshold: 3.0e-4
  kl_reset_epochs: 15
  advantage_aggregation: gardo
  diversity_reward: apart
rewards:
  - {reward_model: shapes, name: proxy}
  - {reward_model: jpeg_compressibility, name: watched, weight: 0}
  - {reward_model: diversity, name: apart, features: pixels, weight: 0}
"""


def write(folder: Path, text: str = YAML) -> Path:
    (folder / "run.yaml").write_text(text)
    return folder / "run.yaml"


def test_all_of_it_together_is_a_config_of_grpos_kin_and_of_nft(tmp_path: Path) -> None:
    for name in ("grpo", "grpo-guard", "dppo", "nft"):
        config = load_config(write(tmp_path), [f"train.trainer_type={name}"])
        assert config.train.moves_reference and not config.notices
    assert not load_config(write(tmp_path), ["train.kl_reset_threshold=null", "train.kl_reset_epochs=null"]).train.moves_reference


WRONG = [
    ("train.kl_beta=0", r"train.kl_gate_share: is about the KL term, and kl_beta: 0 leaves none; write e.g. kl_beta: 0.04"),
    *(("train.trainer_type=awm", rf"train.{key}: is of GARDO's gate, moving reference or diversity, which grpo, grpo-guard, dppo and nft")
      for key in ("kl_gate_share", "kl_gate_bounds", "kl_reset_threshold", "kl_reset_epochs", "diversity_reward")),
    ("train.kl_gate_share=0.5", r"train.kl_gate_share: 0.5 is outside of kl_gate_bounds \[0.02, 0.2\]"),
    ("train.kl_gate_bounds=[0.2, 0.1]", r"train.kl_gate_bounds: wants \[low, high\] with 0 < low <= high <= 1"),
    ("train.best_of_n=2", r"train.best_of_n: 2: the gate takes a share of all samples"),
    ("train.reward_optimization_overlap=true", r"train.reward_optimization_overlap: true: the gate compares the scores of all samples"),
    ("rewards.1.weight=0.5", r"train.kl_gate_share: ranks the trained rewards beside watched ones, and there are none; add rewards"),
    ("rewards.2.weight=0.5", r"rewards.2.weight: 0.5: it scales the others' advantage, and has none itself; write 0"),
    ("train.diversity_reward=aprt",
     r'train.diversity_reward: no reward is named "aprt"; add one, e.g. \{reward_model: diversity, weight: 0\}'),
    ("train.advantage_aggregation=sum",
     r"train.diversity_reward: apart: sum scales no advantage by it; write advantage_aggregation: gardo"),
]  # fmt: skip


@pytest.mark.parametrize(("override", "said"), WRONG)
def test_what_cannot_be_combined_is_refused_with_the_reason(tmp_path: Path, override: str, said: str) -> None:
    text = YAML
    if override.startswith("rewards."):  # a list has no overrides
        text = text.replace("watched, weight: 0", "watched, weight: 0.5") if "1.weight" in override else text
        text = text.replace("pixels, weight: 0", "pixels, weight: 0.5") if "2.weight" in override else text
    with pytest.raises(ConfigError, match=said):
        load_config(write(tmp_path, text), [] if override.startswith("rewards.") else [override])
