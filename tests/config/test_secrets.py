"""Values from the environment, and secrets: what is written down is neither, and can be loaded again."""

from pathlib import Path

import pytest

from flow_factory.config import ConfigError, config_tree, dump_config, load_config
from flow_factory.config.changed import settings
from flow_factory.config.secrets import MASK, is_secret, masked, masked_text
from tests.config.cases import GOOD

SECRET = "s3cr3t-value"
WRITTEN = GOOD.replace("  - reward_model: shapes\n", "  - reward_model: mine_of_secrets.Mine\n    {line}\n")


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """load(line of the reward, *overrides) -> RunConfig, with KEY and RATE in the environment"""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KEY", SECRET)
    monkeypatch.setenv("RATE", "1e-4")
    (tmp_path / "mine_of_secrets.py").write_text("class Mine:\n    pass\n")

    def load(line: str = "batch_size: 4", *overrides: str):
        (tmp_path / "run.yaml").write_text(WRITTEN.replace("{line}", line))
        return load_config(tmp_path / "run.yaml", overrides)

    return load


def again(config, folder: Path):
    (folder / "again.yaml").write_text(dump_config(config))
    return load_config(folder / "again.yaml")


@pytest.mark.parametrize("line", [
    "api_key: ${KEY}", 'api_key: "${KEY}"', "headers: {Authorization: 'Bearer ${KEY}'}", "url: http://me:${KEY}@host/", "other: ${KEY}",
    "keys: [x, {token: '${KEY}'}]", "api_key: ${NOT_SET:-s3cr3t-value}",
])  # fmt: skip
def test_what_came_from_the_environment_stays_its_name(load, tmp_path: Path, line: str) -> None:
    config = load(line)
    assert SECRET in str(config.rewards[0].extra_kwargs)
    assert SECRET not in dump_config(config).replace(":-" + SECRET, "") and SECRET not in str(config_tree(config)).replace(
        ":-" + SECRET, ""
    )
    assert again(config, tmp_path) == config


@pytest.mark.parametrize("line", [
    "api_key: s3cr3t-value", "hf_token: s3cr3t-value", "headers: {Authorization: s3cr3t-value}", "password: s3cr3t-value",
    "credentials: {user: s3cr3t-value}", "url: http://me:s3cr3t-value@host/", "url: http://host/?api_key=s3cr3t-value",
    "apiKey: [s3cr3t-value]",
])  # fmt: skip
def test_a_secret_that_was_written_out_is_masked_and_its_mask_is_no_value(load, tmp_path: Path, line: str) -> None:
    config = load(line)
    assert SECRET in str(config.rewards[0].extra_kwargs)
    assert SECRET not in dump_config(config) + str(config_tree(config)) + str(settings(config)) and MASK in dump_config(config)
    assert SECRET in dump_config(config, secrets=True) and load_config(config) == config
    with pytest.raises(ConfigError, match=r"rewards\.0\..*: \*\*\* stands for a secret .*; write \$\{NAME\}, and set NAME"):
        again(config, tmp_path)


def test_a_value_alone_is_read_as_yaml_reads_it(load, tmp_path: Path) -> None:
    config = load("batch_size: ${SIZE:-8}", "train.learning_rate=${RATE}", 'log.run_name="run-${SIZE:-1}"')
    assert (config.rewards[0].batch_size, config.train.learning_rate, config.log.run_name) == (8, 1e-4, "run-1")
    assert "learning_rate: ${RATE}" in dump_config(config) and 'run_name: "run-${SIZE:-1}"' in dump_config(config)
    assert again(config, tmp_path) == config == load_config(config)
    assert load_config(config, ["train.learning_rate=3e-4"]).train.learning_rate == 3e-4
    later = load("batch_size: ${SIZE:-8}", "train.learning_rate=${RATE}", "train.learning_rate=2e-4")
    assert "learning_rate: 0.0002" in dump_config(later)


def test_a_dollar_that_is_doubled_is_a_dollar(load, tmp_path: Path) -> None:
    config = load("template: 'say $${KEY} and ${a b}'")
    assert config.rewards[0].extra_kwargs == {"template": "say ${KEY} and ${a b}"}
    assert again(config, tmp_path) == config


def test_a_variable_that_is_not_set_is_a_line(load) -> None:
    with pytest.raises(ConfigError, match=r"run\.yaml:24: rewards\.0\.api_key: the environment variable NOT_SET is not set"):
        load("api_key: ${NOT_SET}")


def test_messages_have_no_secret(load) -> None:
    for line, overrides in (("batch_size: ${KEY}", ()), ("batch_size: 4", ("rewards.0.api_key.x=s3cr3t-value", "rewards.0.api_key.x.y=1"))):
        with pytest.raises(ConfigError) as error:
            load(line, *overrides)
        assert SECRET not in str(error.value)
    with pytest.raises(ConfigError, match="wants a whole number, got what .{KEY} stands for"):
        load("batch_size: ${KEY}")


def test_which_keys_are_secret() -> None:
    for key in (
        "api_key",
        "API-KEY",
        "apiKey",
        "openai_api_key",
        "hf_token",
        "token",
        "password",
        "Authorization",
        "client_secret",
        "auth_token",
    ):
        assert is_secret(key), key
    for key in (
        "max_tokens",
        "tokenizer",
        "pad_token",
        "yes_token",
        "token_length",
        "image_key",
        "key",
        "keys",
        "secret_name",
        "num_workers",
    ):
        assert not is_secret(key), key
    assert masked({"password": None, "token": True, "sort_key": "a"}) == {"password": None, "token": True, "sort_key": "a"}
    assert masked_text("call with sk-abcdefghijklmnop1234 now") == "call with *** now"
