"""What stands in public configs, written anew: read, with a line where a key has no effect, or refused in one."""

from pathlib import Path

import pytest

from flow_factory.config import ConfigError, load_config
from tests.config.cases import GOOD, PUBLIC

NFT = GOOD.replace("trainer_type: grpo", "trainer_type: nft").replace("  dynamics_type: Flow-SDE\n", "")


def load(folder: Path, text: str, *overrides: str):
    (folder / "run.yaml").write_text(text)
    return load_config(folder / "run.yaml", overrides)


def test_a_key_written_twice_with_one_value_is_a_line(tmp_path: Path) -> None:
    config = load(
        tmp_path, GOOD.replace("train:\n", "train:\n  seed: 3\n  adam_betas: [0.9, 0.95]\n  seed: 3\n  adam_betas: [0.9, 0.95]\n")
    )
    assert config.train.seed == 3
    assert config.notices == (
        "train.seed is written twice, on lines 12 and 14, with the same value",
        "train.adam_betas is written twice, on lines 13 and 15, with the same value",
    )
    with pytest.raises(ConfigError, match="train.seed: is written twice, first on line 12, with another value"):
        load(tmp_path, GOOD.replace("train:\n", "train:\n  seed: 3\n  seed: 4\n"))


def test_keys_without_effect_are_lines(tmp_path: Path) -> None:
    text = NFT.replace("train:\n", "train:\n  clip_range: 1.0e-4\n  condition_image_size: [1024, 1024]\n  num_train_timesteps: null\n")
    config = load(tmp_path, text.replace("eval:\n", "eval:\n  condition_image_size: 512\n"))
    assert config.notices == (
        "train.clip_range has no effect: it belongs to trainer_type: grpo, grpo-guard, awm, dgpo, and this is nft",
        "train.condition_image_size has no effect: this model has no such size",
        "eval.condition_image_size has no effect: this model has no such size",
    )
    assert config.train.num_train_timesteps == 0
    assert load(tmp_path, NFT.replace("trainer_type: nft", "trainer_type: dpo\n  num_train_timesteps: null")).train.num_train_timesteps == 1


def test_a_component_of_which_no_layer_is_named_is_not_trained(tmp_path: Path) -> None:
    keys = ["model.target_components=[transformer, transformer_2]", "model.target_modules=transformer.default"]
    config = load(tmp_path, GOOD, *keys)
    assert config.model.target_components == ("transformer",)
    assert config.notices == ("model.target_components: transformer_2 is not trained: target_modules names layers of transformer alone",)
    assert load(tmp_path, GOOD, *keys, "model.target_modules=[transformer.default, transformer_2.to_q]").notices == ()


@pytest.mark.parametrize(("text", "said"), [
    (PUBLIC.replace('"PickScore"', '"imagebind"'), "eval_rewards.reward_model: no reward 'imagebind': its weights are CC-BY-NC-SA"),
    (PUBLIC.replace("batch_size: 2", "batch_size: 24", 1).replace("group_size: 16", "group_size: 4").replace('"auto"', "null"),
     "train.group_size: 4 must be a multiple of train.per_device_batch_size=24; write 24, or per_device_batch_size: 4"),
    ("distributed_type: FSDP\nfsdp_config: {fsdp_version: 2}\n", "is a config file of accelerate; name it as config_file"),
])  # fmt: skip
def test_what_is_not_here_is_refused_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(tmp_path, text)
    (line,) = str(error.value).splitlines()
    assert said in line
