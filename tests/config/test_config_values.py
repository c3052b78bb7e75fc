"""Values that no run can use, one at a time: each is one printable line that names its key, whatever it is."""

from pathlib import Path

import pytest

from flow_factory.config import ConfigError, dump_config, load_config
from tests.config.cases import GOOD

BIG = "9" * 5000
BAD = """\
train.seed: -1, 9223372036854775808, 18446744073709551616, 1e3, 3.5, "3", null, [1], {a: 1}, true, 010, 0x10, 1_000, 1:30, 0b11, yes, BIG
eval.seed: -1, 9223372036854775808, one
train.adam_betas: [1.0, 0.9], [0.9, 1], [-0.1, 0.9], [0.9], [], 0.9, [a, b], [0.9, 0.99, 0.999], [.nan, 0.9], null
train.learning_rate: 0, -1, 1000000.0, 1.0e+300, .inf, .nan, 1e400, fast, true, [], null, 1_0.5, 1:30.5
train.adam_weight_decay: -1, 1.0e+9, .inf
train.adam_epsilon: 0, -1, .nan
train.max_grad_norm: 0, -1, .inf, none
train.ema_decay: 1, -0.1, 2, .nan
train.max_epochs: 0, 1.5, many, BIG
train.group_size: 0, -8, 10000000000, 8.0, 3, 9
train.per_device_batch_size: 0, -1, 99999999, 3
train.unique_sample_num_per_epoch: 0, -6, 1000000000
train.gradient_step_per_epoch: 0, -1, 1000000000, 5
train.gradient_accumulation_steps: 0, -1, often, 99, 1.0, true
train.num_inference_steps: 0, 1, -4, 1000000, 8.5
train.guidance_scale: -1, 1.0e+9, .inf
train.resolution: 0, -64, [64], [64, 0], 99999999, [64, 64, 64], big, 64.0
train.height: 0, -1, 99999999
train.max_sequence_length: 0, -1, 2.5, true, 99999999999, ten
train.true_cfg_scale: -1, .nan, .inf, 1.0e+9
train.num_inner_epochs: 0, -1
train.lr_warmup_steps: -1, -0.5, 1.5, true, many
train.latent_storage_dtype: fp8, 16
train.clip_range: 0, -1, [1, 2], [0, 1], .inf, [1], none
train.adv_clip_range: 0, [1, 5], .nan
train.kl_beta: -1, 1.0e+300, .inf
train.trainer_type: "", 7, null, [], ppo, a..b, nothing.Here
scheduler.noise_level: 0, -0.7, 1.0e+9, .nan, loud
scheduler.sde_steps: [-1], [0, 99], [1, 1], [2, 1], [], 3, [a], [1.5]
scheduler.num_sde_steps: 0, -1, 99
scheduler.dynamics_type: ODE, sde, 7
scheduler.shift: wide, .inf, [1]
model.model_type: "", ".", "..", a..b, "a:b:c", "no such", 7, null, flux9, nothing.Here
model.model_name_or_path: "", "  ", 7, null, "~nobody-of-this-name/x", "a\\nb", LONG, "a\\x07"
model.lora_rank: 0, -1, 99999999, 4.0
model.lora_alpha: 0, -1, 99999999
model.context_parallel: 0, 3
model.target_modules: 7, [1], true, on
model.attn_backend: quick, 7
model.finetune_type: both, true
model.resume_type: all
data.dataset_dir: "", 7, "a\\tb", LONG, "~nobody-of-this-name", "hf://owner/name", "s3://a/b", "hf://datasets/a/b/c", "hf://datasets/a b"
data.columns: 7, prompt, {promt: x}, {prompt: 7}, {prompt: ""}, [prompt]
data.train_split: "", 7, "a b", "train[:", "train[1:2:3]"
data.subset: "", 7
data.cache_dir: "", LONG
data.max_dataset_size: 0, -1, all
log.run_name: "", " ", " a", 7, yes, LONG, "a\\nb", "a\\u202eb", "a\\x1b[2J", 010
log.project: "", null, "a\\nb", LONG
log.save_dir: "", "\\u2028", LONG
log.save_freq: -1, 2.5
log.save_minutes: 0, -1, soon
log.rollouts_gb: -1, all
log.keep_last_n: 0, -1
log.logging_backend: wanbd, 7, [tensorboard, x], {a: 1}
rewards.0.weight: 0, 1.0e+300, -1.0e+300, .nan, heavy, 1.0e-300, true
rewards.0.batch_size: 0, -1, 1.5
rewards.0.device: gpu, "cuda:", "cuda:9999999999", 7
rewards.0.name: "", 7, LONG, "a\\nb", null_
rewards.0.reward_model: "", 7, null, [], nothing.Here, "a b", "..", shape
num_processes: 0, -1, 99999999, two, 7
main_process_port: -1, 70000
mixed_precision: fp8, 16, true
config_file: "", 7, LONG, nowhere.yaml
"""


def cases() -> list[tuple[str, str]]:
    """(key, value as YAML), values parted by commas outside brackets and quotes."""
    import re

    rows = (line.split(": ", 1) for line in BAD.splitlines())
    found = [(key, value) for key, values in rows for value in re.findall(r'\[.*?\]|\{.*?\}|"[^"]*"|[^,\s][^,]*', values)]
    text = {"LONG": "x" * 5000, "BIG": BIG, "null_": "[a]"}
    return [(key, text.get(value, value)) for key, value in found]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("values") / "run.yaml"
    path.write_text(GOOD)
    return path


@pytest.mark.slow
def test_each_value_that_no_run_can_use_is_a_line_that_names_its_key(file: Path) -> None:
    wrong = []
    for key, value in cases():
        if (key, value) in (("train.learning_rate", "null"), ("train.adam_betas", "null")):
            continue
        try:
            load_config(file, [f"{key}={value}"])
            wrong.append(f"{key}={value[:60]}: accepted")
        except ConfigError as error:
            lines = str(error).splitlines()
            told = [line for line in lines if key in line or key.replace("height", "resolution") in line]
            if not told or not all(line.isprintable() and len(line) < 1500 for line in lines):
                wrong.append(f"{key}={value[:60]}: {lines}")
    assert len(cases()) > 240 and not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("010", "YAML reads 010 as 8; write 8, or quote it where text is meant"),
        ("1_000", "YAML reads 1_000 as 1000; write 1000"),
        ("0x1F", "YAML reads 0x1F as 31"),
        ("1:30", "YAML reads 1:30 as 90"),
        ("9" * 19, "is too large; a whole number is at most 9223372036854775807"),
    ],
)
def test_a_number_that_is_read_otherwise_than_it_looks_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "run.yaml").write_text(GOOD.replace("max_epochs: 50", f"max_epochs: {text}"))
    with pytest.raises(ConfigError, match="run.yaml:13: train.max_epochs: ") as error:
        load_config(tmp_path / "run.yaml")
    assert said in str(error.value)


def test_yes_and_no_are_words_where_nobody_asks_for_true_and_false(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a key that is true or false they are what they are; a country's code is not."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine_of_values.py").write_text("class Mine:\n    pass\n")
    (tmp_path / "run.yaml").write_text(
        GOOD.replace("reward_model: shapes\n", "reward_model: mine_of_values.Mine\n    country: no\n    more: {deep: [on]}\n").replace(
            "dataset/mine", "x"
        )
    )
    with pytest.raises(ConfigError) as error:
        load_config(tmp_path / "run.yaml", ["data.dataset_dir=dataset/shapes", "train.global_std=yes", "mixed_precision=no"])
    one, other = str(error.value).splitlines()
    assert 'rewards.0.country: YAML reads no as false; write false, or "no" where text is meant' in one
    assert "rewards.0.more.deep.0: YAML reads on as true" in other
    with pytest.raises(ConfigError, match='log.run_name: YAML reads off as false; write "off" where text is meant'):
        load_config(tmp_path / "run.yaml", ["rewards.0.country=x", "rewards.0.more=x", "log.run_name=off"])


def test_a_name_may_have_what_a_file_system_and_a_terminal_can_show(file: Path) -> None:
    config = load_config(file, ["log.run_name=größe/α-1", "rewards.0.name=$\\frac$"])
    assert config.log.run_name == "größe/α-1"
    assert load_config(file, ["log.run_name=" + "x" * 200]).log.run_name


def test_cps_keeps_at_most_all_of_its_noise(file: Path) -> None:
    assert load_config(file, ["scheduler.dynamics_type=CPS", "scheduler.noise_level=1"])
    with pytest.raises(ConfigError, match="scheduler.noise_level: 1.2 is more than the noise that CPS has"):
        load_config(file, ["scheduler.dynamics_type=CPS", "scheduler.noise_level=1.2"])


def test_a_clip_range_that_clips_nothing_is_said(file: Path) -> None:
    (said,) = load_config(file, ["train.clip_range=1e9"]).notices
    assert "clips nothing" in said


@pytest.mark.parametrize(("written", "steps", "said"), [
    ("8", 8, None), ("200", 75, "200 -> 75, for the schedule has 150 optimiser steps"), ("0.1", 15, "0.1 -> 15, "),
])  # fmt: skip
def test_a_warm_up_ends_before_the_run(file: Path, written: str, steps: int, said: str | None) -> None:
    """F17: `max_epochs=1` of a config with a warm-up of some epochs is a shorter run, not an error."""
    config = load_config(file, [f"train.lr_warmup_steps={written}"])
    assert config.train.lr_warmup_steps == steps
    assert [said in line for line in config.notices] == ([True] if said else [])
    (again := file.with_name("again.yaml")).write_text(dump_config(config))
    assert load_config(again) == config
