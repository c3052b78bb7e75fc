"""guidance/algorithms.md as a newcomer takes it: its file, its YAML, a run; and what is said of a file or a YAML that is wrong."""

import re
from pathlib import Path
from textwrap import dedent

import pytest
import torch
import yaml
from diffusers import FluxTransformer2DModel

from flow_factory.config import ConfigError, load_config
from tests.commands.test_docs import ROOT
from tests.tiny.run import forwards, logged, tiny, trained, write_run

PAGE = (ROOT / "guidance/algorithms.md").read_text()
(FILE,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
(LINES,) = re.findall(r"^   ```yaml\n(.*?)^   ```", PAGE, re.MULTILINE | re.DOTALL)
TRAIN = yaml.safe_load(dedent(LINES))["train"]
KEYS = [f"train.{key}={value}" for key, value in TRAIN.items()]
GROUP, BATCH, POINTS = TRAIN["group_size"], TRAIN["per_device_batch_size"], TRAIN["num_train_timesteps"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The current directory, with the page's file in it."""
    (tmp_path / "my_algorithms.py").write_text(FILE)
    return tmp_path


def refused(folder: Path, *overrides: str) -> str:
    """What is said of the tiny run's YAML with these keys."""
    with pytest.raises(ConfigError) as error:
        load_config(write_run(folder), overrides)
    return str(error.value)


# -- the page's file and YAML -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_pages_algorithm_trains_and_logs_its_metrics(folder: Path) -> None:
    run = tiny(folder, *KEYS, "eval.eval_freq=0")
    before = trained(run)
    run()
    assert all(not torch.equal(weights, before[name]) for name, weights in trained(run).items() if "lora_B" in name)
    lines = [line for line in logged(folder / "save/run") if "train/loss" in line]
    assert len(lines) == 2
    for line in lines:
        assert 1 < line["train/weight_square"] < GROUP
        assert line["train/loss"] == pytest.approx(line["train/policy_loss"] + TRAIN["kl_beta"] * line["train/kl_div"], rel=1e-6)
        assert line["train/matching_error"] > 0
    assert lines[0]["train/kl_div"] < lines[1]["train/kl_div"]


@pytest.mark.slow
def test_the_pages_weights_are_those_of_the_whole_group_however_it_is_cut(folder: Path) -> None:
    """One number a group: the mean square of its weights depends on nothing but its rewards."""
    found = []
    for size in (BATCH, GROUP):
        run = tiny(
            folder, *KEYS, f"train.per_device_batch_size={size}", "train.max_epochs=1", "eval.eval_freq=0", f"log.run_name=by_{size}"
        )
        run()
        found.append([line["train/weight_square"] for line in logged(folder / f"save/by_{size}") if "train/weight_square" in line])
    assert found[0] == pytest.approx(found[1], rel=1e-3)


@pytest.mark.slow
def test_the_pages_survey_costs_no_forward(folder: Path) -> None:
    run = tiny(folder, *KEYS, "train.max_epochs=1", "eval.eval_freq=0")
    rollouts = run.trainer.collector(0)
    run.trainer.judge(rollouts)
    run.context.progress.updates = 1  # the check after a run's first update is not counted
    with forwards(FluxTransformer2DModel) as seen:
        run.trainer.learner.learn(run.trainer.groups(rollouts))
    assert len(seen) == 2 * (GROUP // BATCH) * POINTS * 2  # rows, micro-batches, points, policy and reference


# -- what is wrong is said --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "said"), [
    ("temprature=1", "train.temprature: unknown key. Did you mean 'temperature'?"),
    ("num_train_timestep=1", "train.num_train_timestep: unknown key. Did you mean 'num_train_timesteps'?"),
    ("temperature=warm", 'train.temperature: wants a number, got "warm"'),
    ("temperature=0", "train.temperature: must be greater than 0, got 0"),
    ("kl_beta=true", "train.kl_beta: wants a number, got true"),
])  # fmt: skip
def test_its_config_is_a_strict_schema(folder: Path, key: str, said: str) -> None:
    assert said in refused(folder, *KEYS, f"train.{key}")


def test_the_rules_of_what_it_extends_are_its_own_too(folder: Path) -> None:
    assert "train.group_size: 1 leaves no advantage" in refused(folder, *KEYS, "train.group_size=1", "train.per_device_batch_size=1")
    assert "train.timestep_range: [0.0, 0.1] has 0 of the 3 steps" in refused(folder, *KEYS, "train.timestep_range=0.1")


@pytest.mark.parametrize(("name", "said"), [
    ("my_algorithms.Bare", "my_algorithms.Bare has no Config: write a subclass of TrainConfig"),
    ("my_algorithms.RewardWeihted", "module 'my_algorithms' has no 'RewardWeihted'"),
    ("my_algorithm.RewardWeighted", "there is no module 'my_algorithm' (looked in the current directory too)"),
    ("RewardWeighted", "no algorithm 'RewardWeighted'. Known: grpo, "),
    ("my_algorithms.Older", "my_algorithms.Older' defines asks, which is called needs now; rename it"),
])  # fmt: skip
def test_a_class_that_is_not_there_or_does_not_fit_is_said(folder: Path, name: str, said: str) -> None:
    older = "class Older(RewardWeighted):\n    def asks(self, weights, rollout):\n        return False\n"
    (folder / "my_algorithms.py").write_text(f"{FILE}\n\nclass Bare(ForwardProcess):\n    pass\n\n\n{older}")
    message = refused(folder, f"train.trainer_type={name}")
    assert "train.trainer_type: " in message
    assert said in message
