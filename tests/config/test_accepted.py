"""The YAML: what is accepted, and what overrides of the command line do."""

import pytest
import yaml

from flow_factory.config import ConfigError, GRPOConfig, dump_config
from flow_factory.config.help import SECTIONS
from flow_factory.config.monitor import WatchConfig
from flow_factory.config.networks import NetworkConfig
from tests.config.cases import GOOD, PUBLIC
from tests.conftest import ROOT

# -- what is accepted ---------------------------------------------------------------------------------------------------------------


def test_a_public_config_loads_unchanged(load, monkeypatch):
    monkeypatch.chdir(ROOT)  # it names a file of the launcher
    config = load(PUBLIC)
    assert isinstance(config.train, GRPOConfig)
    assert config.train.clip_range == (-1e-4, 1e-4)
    assert config.train.adv_clip_range == (-5, 5)
    assert config.train.call == config.eval.call == {"max_sequence_length": 256}
    assert (config.model.target_modules, config.model.lora_alpha) == (("default",), 128)
    assert config.log.logging_backend == ("wandb",)
    assert [r.name for r in config.rewards] == ["pickscore_rank"]
    assert [(r.name, r.dtype) for r in config.eval_rewards or ()] == [("pickscore", "bf16")]
    notice, launcher = sorted(config.notices, key=lambda line: line.startswith("config_file"))
    assert launcher == "config_file: there is no config/deepspeed/deepspeed_zero2.yaml; using Flow-Factory's own deepspeed_zero2.yaml"
    assert "force_reprocess" in notice


@pytest.mark.parametrize("text", [GOOD, PUBLIC], ids=["good", "public"])
def test_a_dump_loads_to_an_equal_configuration(load, text, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = load(text, "train.height=256", 'log.run_name="1e-4"', "scheduler.shift=3", "mixed_precision=no")
    again = load(dump_config(config))
    assert again == config
    assert dump_config(again) == dump_config(config)


def test_a_dump_lists_every_key(load):
    tree = yaml.safe_load(dump_config(load(GOOD, "profile={}")))
    tree["optimizers"], tree["monitor"] = NetworkConfig.own_keys(), WatchConfig.own_keys()  # lists that are empty here
    for name, (schema, *_) in SECTIONS.items():
        held = tree if name == "run" else tree["rewards"][0] if name == "rewards" else tree[name]
        assert set(schema.own_keys()) - set(held) <= {"height", "width", "test_split"}


def test_defaults_follow_other_keys(load):
    config = load(GOOD, "train.resolution=[64, 96]", "train.width=128", "model.lora_rank=32", "data.dataset_dir=here")
    assert (config.train.height, config.train.width) == (64, 128)
    assert config.model.lora_alpha == 64
    assert config.data.image_dir == "here/images"
    assert config.model.master_weight_dtype == "fp32"
    assert load(GOOD, "model.finetune_type=full").model.master_weight_dtype == "bf16"


def test_log_keys_may_stand_at_the_top_level(load):
    config = load("run_name: mine\nproject: p\nlogging_backend: tensorboard, wandb\n" + GOOD)
    assert (config.log.run_name, config.log.project, config.log.logging_backend) == ("mine", "p", ("tensorboard", "wandb"))
    assert load("logging_backend: wandb\n" + GOOD, "logging_backend=none").log.logging_backend == ()
    assert load(GOOD, "log.logging_backend=[swanlab, my_package.trackers.Mine]").log.logging_backend == (
        "swanlab",
        "my_package.trackers.Mine",
    )


def test_equal_log_keys_in_both_places_are_fine(load):
    assert load("project: p\nlog:\n  project: p\n" + GOOD).log.project == "p"


@pytest.mark.parametrize(
    ("written", "names"),
    [
        ("rewards: {reward_model: shapes}", ["shapes"]),
        ("rewards: {easy: {reward_model: shapes}, hard: {reward_model: shapes, strict: true}}", ["easy", "hard"]),
        ("rewards: [{reward_model: PickScore_Rank}, {reward_model: CLIP, name: c}]", ["pickscore_rank", "c"]),
    ],
)
def test_rewards_are_one_mapping_or_a_list_or_by_name(load, written, names):
    config = load(GOOD.replace("rewards:\n  - reward_model: shapes", written))
    assert [reward.name for reward in config.rewards] == names


def test_a_reward_of_ones_own_takes_any_key(load, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_rewards.py").write_text("class Mine:\n    pass\n")
    config = load(GOOD + "  - reward_model: my_rewards.Mine\n    server_url: http://x\n")
    assert config.rewards[-1].extra_kwargs == {"server_url": "http://x"}
    assert config.rewards[-1].name == "mine"


# -- overrides ----------------------------------------------------------------------------------------------------------------------


def test_overrides_win_and_are_read_as_yaml(load):
    config = load(
        GOOD,
        "train.learning_rate=1e-4",
        "train.learning_rate=2e-4",
        "model.target_modules=[to_q, to_k]",
        "rewards.0.weight=2",
        "eval.max_sequence_length=20",
        "train.max_epochs=",
    )
    assert config.train.learning_rate == 2e-4
    assert config.model.target_modules == ("to_q", "to_k")
    assert config.rewards[0].weight == 2
    assert (config.train.call, config.eval.call) == ({"max_sequence_length": 10}, {"max_sequence_length": 20})
    assert config.train.max_epochs is None


@pytest.mark.parametrize("name", ["quickstart", "grpo/lora/flux1", "dpo/lora/flux1"])
def test_a_runs_own_config_has_no_notices_about_keys_that_nobody_wrote(load, name, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = load((ROOT / "examples" / f"{name}.yaml").read_text())
    assert load(dump_config(config)).notices == config.notices


def test_a_runs_own_config_names_no_test_split_that_nobody_named(load):
    """A table without the split that is named is refused: a resumed run would be."""
    for overrides, named in (((), False), (("data.test_split=test",), True), (("data.test_split=validation",), True)):
        config = load(GOOD, *overrides)
        again = load(dump_config(config))
        assert again == config and ("test_split" in again.data.model_fields_set) == named


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train.learning_rate", "section.key=value"),
        ("=3", "section.key=value"),
        ("train.learing_rate=1", "train.learing_rate: unknown key. Did you mean 'learning_rate'"),
        ("trian.learning_rate=1e-3", "trian: unknown key. Did you mean 'train'"),
        ("trian.a.b=1", ": trian: unknown key. Did you mean 'train'"),
        ("train.group_size=many", "train.group_size: wants a whole number"),
        ("train.group_size=6", "train.group_size: 6 must be a multiple"),
        ("rewards.1.weight=2", "rewards has no entry 1; it has 0 to 0"),
        ("rewards.shapes.weight=2", "rewards is a list"),
        ("train.seed.x=1", "train.seed is not a mapping"),
        ("train.adam_betas=[1", "not valid YAML"),
    ],
)
def test_a_wrong_override_is_named(load, text, said):
    with pytest.raises(ConfigError) as error:
        load(GOOD.replace("trainer_type: grpo", "seed: 1"), text)
    assert f'override "{text}"' in str(error.value)
    assert said in str(error.value)
