"""What the YAML may say of several trained networks and of students of few steps, and what is refused with which words."""

from pathlib import Path
from typing import Any

import pytest

from flow_factory.config import ConfigError, RunConfig, dump_config, load_config
from flow_factory.config.networks import group_of

YAML = """\
data:
  dataset_dir: data
model:
  model_type: flux1
  model_name_or_path: tiny
  finetune_type: lora
train:
  trainer_type: {name}
  group_size: 4
  per_device_batch_size: 2
  unique_sample_num_per_epoch: 2
eval_rewards:
  - reward_model: shapes
"""
REWARDS = "rewards:\n  - reward_model: shapes\n"
FAKE = "optimizers:\n  - {name: fake, learning_rate: 1.0e-4, betas: [0.5, 0.9], max_grad_norm: 0.1, update_frequency: 2}\n"


def load(folder: Path, name: str = "dmd2", more: str = "", *overrides: str) -> RunConfig[Any]:
    (folder / "run.yaml").write_text(YAML.format(name=name) + (REWARDS if name == "tdm-r1" else "") + more)
    return load_config(folder / "run.yaml", overrides)


def test_a_student_is_evaluated_as_it_is_trained(tmp_path: Path) -> None:
    config = load(tmp_path)
    assert config.train.num_inference_steps == config.eval.num_inference_steps == 4 and not config.rewards
    assert load(tmp_path, "tdm", "", "train.num_inference_steps=2").eval.num_inference_steps == 2
    assert config.train.learning_rate == 7.5e-5 and config.train.adam_betas == (0.0, 0.999)


def test_networks_beside_the_policy_have_what_their_entry_says_and_else_what_train_does(tmp_path: Path) -> None:
    config = load(tmp_path, "tdm-r1", FAKE, "train.learning_rate=1e-5", "train.max_grad_norm=2")
    fake, surrogate = (group_of(name, config.train, config.optimizers) for name in ("fake", "surrogate"))
    assert fake == {"lr": 1e-4, "betas": (0.5, 0.9), "eps": 1e-15, "weight_decay": 1e-4, "max_grad_norm": 0.1}
    assert surrogate == {"lr": 4e-5, "betas": (0.9, 0.999), "eps": 1e-15, "weight_decay": 1e-4, "max_grad_norm": 2}
    assert (config.frequency_of("fake"), config.frequency_of("surrogate"), config.frequency_of("policy")) == (2, 1, 1)
    (tmp_path / "again.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "again.yaml") == config


def test_the_generators_entry_is_what_train_says(tmp_path: Path) -> None:
    text = "optimizers:\n  - {name: generator, optimizer: adamw, learning_rate: 1.0e-5}\n  - {name: fake, learning_rate: 3.0e-5}\n"
    config = load(tmp_path, "tdm", text)
    assert config.train.learning_rate == 1e-5 and [(n.name, n.learning_rate) for n in config.optimizers] == [("fake", 3e-5)]


def test_a_run_without_rewards_is_written_and_read_again(tmp_path: Path) -> None:
    config = load(tmp_path)
    (tmp_path / "again.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "again.yaml") == config


REFUSED = [
    ("dmd2", "", "model.finetune_type=full", "model.finetune_type", "full: dmd2 trains 2 networks, which are LoRAs over one frozen base"),
    ("tdm-r1", "", "train.optimizer=muon", "train.optimizer", "tdm-r1 trains 3 networks"),
    ("dmd2", "", "model.compile=true", "model.compile", "take turns in the compiled blocks"),
    ("dmd2", "", "train.reference=start", "train.reference", "write base"),
    ("tdm", "", "eval.num_inference_steps=30", "eval.num_inference_steps", "30: a student of few steps is evaluated as it is trained"),
    ("tdm", "", "eval.guidance_scale=1", "eval.guidance_scale", "write 3.5"),
    ("tdm", "", "train.drop_zero_variance=true", "train.drop_zero_variance", "write false"),
    ("dmd2", "", "train.best_of_n=2", "train.best_of_n", "write null"),
    ("dmd2", REWARDS, "", "rewards", "dmd2 takes no rewards; name them in eval_rewards"),
    ("tdm", "", "train.real_guidance_scale=0.5", "train.real_guidance_scale", "greater than or equal to 1"),
    ("tdm-r1", "", "train.real_guidance_scale=1", "train.tdm_weight", "0.3: real_guidance_scale: 1.0 leaves no guidance; write 0"),
    ("dmd2", "", "train.perturbation_timestep_range=[0.5, 0.2]", "train.perturbation_timestep_range", "low < high"),
    ("dmd2", FAKE.replace("fake", "surrogate"), "", "optimizers.0.name", "dmd2 trains no network of this name; write generator or fake"),
    ("dmd2", FAKE.replace("learning_rate", "lr"), "", "optimizers.0.lr", "unknown key"),
    ("dmd2", FAKE + "  - {name: fake}\n", "", "optimizers.1.name", "is the name of optimizers.0 too"),
    ("dmd2", FAKE.replace("name: fake", "name: fake, optimizer: muon"), "", "optimizers.0.optimizer", "all networks have train.optimizer"),
    ("dmd2", "optimizers: fast\n", "", "optimizers", "wants a list of networks"),
    ("nft", REWARDS + FAKE, "", "optimizers.0.name", "nft trains no network of this name; write default"),
]


@pytest.mark.parametrize(("name", "more", "override", "key", "said"), REFUSED)
def test_what_cannot_be_is_refused_with_the_reason(tmp_path: Path, name: str, more: str, override: str, key: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, name, more, *([override] if override else []))
    assert f"{key}: " in str(caught.value) and said in str(caught.value)


def test_deepspeed_is_refused_and_fsdp2_is_not(tmp_path: Path) -> None:
    many = ("num_processes=2", "train.unique_sample_num_per_epoch=4")
    with pytest.raises(ConfigError, match="config_file: DeepSpeed ZeRO-2 steps all weights at once, and dmd2 trains 2 networks in turn"):
        load(tmp_path, "dmd2", "", "config_file=examples/launch/deepspeed_zero2.yaml", *many)
    assert load(tmp_path, "dmd2", "", "config_file=examples/launch/fsdp2.yaml", *many).engine.kind == "fsdp"
