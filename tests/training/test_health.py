"""What a run says of numbers that are none, of steps that epsilon rules, and of a policy that stands still."""

import logging
from pathlib import Path

import pytest
import torch

from flow_factory.config import load_config
from flow_factory.config.train import FULL_RATE, LORA_RATE
from flow_factory.training.health import PATIENCE, TrainingHealth
from flow_factory.training.run import Run
from flow_factory.utils.errors import RunError
from tests.tiny.run import tiny, write_run

QUIET = ("eval.eval_freq=0", "train.ema_decay=0")


def fails(run: Run) -> str:
    with pytest.raises(RunError) as error:
        for _ in range(3):
            run.trainer.epoch()
    return str(error.value)


@pytest.mark.parametrize(("algorithm", "says"), [
    ("grpo", "epoch 2: after 1 optimiser step the model's velocity is NaN or inf, though its weights are finite: the steps were"),
    ("nft", "epoch 2, update 1: the norm of the gradient is nan"),
])  # fmt: skip
def test_steps_that_were_too_large_are_called_so(tmp_path: Path, algorithm: str, says: str) -> None:
    run = tiny(tmp_path, *QUIET, f"train.trainer_type={algorithm}", "train.gradient_step_per_epoch=1")
    run.context.engine.optimizer.param_groups[0]["lr"] = 1e30
    said = fails(run)
    assert said.startswith(says) and "train.learning_rate" in said and "kernels differ" not in said


@pytest.mark.parametrize("algorithm", ["grpo", "nft"])
def test_a_weight_of_the_checkpoint_that_is_no_number_is_named(tmp_path: Path, algorithm: str) -> None:
    run = tiny(tmp_path, *QUIET, f"train.trainer_type={algorithm}")
    name, weight = next((k, p) for k, p in run.context.policy.components.named_parameters() if not p.requires_grad)
    weight.data[0] = torch.nan
    said = fails(run)
    assert name in said and "checkpoint is damaged" in said and "attn_backend" not in said


def test_activations_that_leave_the_range_are_not_blamed_on_kernels(tmp_path: Path) -> None:
    run = tiny(tmp_path, *QUIET)
    next(p for p in run.context.policy.components.parameters() if not p.requires_grad).data.fill_(3e38)
    said = fails(run)
    assert "before any optimiser step the model's velocity is NaN or inf, though its weights are finite" in said


def test_the_gradients_size_is_that_of_a_weight(tmp_path: Path) -> None:
    run = tiny(tmp_path, *QUIET)
    metrics, weights = run.trainer.epoch(), sum(p.numel() for p in run.context.policy.trained().values())
    assert metrics["train/grad_rms"] == pytest.approx(metrics["train/grad_norm"] / weights**0.5)


def test_an_epsilon_that_rules_the_step_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for epsilon, says in (("1.0e-3", 1), ("1.0e-15", 0)):
        run = tiny(tmp_path, *QUIET, f"train.adam_epsilon={epsilon}", f"run_name=r{epsilon}")
        with caplog.at_level(logging.WARNING):
            run.trainer.epoch(), run.trainer.epoch()
        found = [r.getMessage() for r in caplog.records if "train.adam_epsilon" in r.getMessage()]
        assert len(found) == says
        assert not found or ("adam_epsilon: 1.0e-15" in found[0] and "train/grad_rms" in found[0])
        caplog.clear()


def test_a_policy_that_stands_still_is_said_once(tmp_path: Path) -> None:
    watch = TrainingHealth(load_config(write_run(tmp_path), ["train.clip_range=1.0e-3", "train.learning_rate=1e-5"]))
    said = [watch.stands_still({"train/ratio_std": spread}) for spread in [9e-6] * (PATIENCE + 2)]
    assert [k for k, line in enumerate(said) if line] == [PATIENCE - 1]
    assert said[PATIENCE - 1] is not None and "a LoRA usually takes 0.0003" in str(said[PATIENCE - 1])
    moving = TrainingHealth(watch.config)
    assert not any(moving.stands_still({"train/ratio_std": spread}) for spread in [9e-6, 2e-5, *[0.0] * 9, *[9e-6] * 9])


def test_the_default_learning_rate_is_that_of_what_is_trained(tmp_path: Path) -> None:
    file = write_run(tmp_path)
    file.write_text("".join(line for line in file.read_text().splitlines(keepends=True) if "learning_rate" not in line))
    assert load_config(file).train.learning_rate == LORA_RATE
    full = load_config(file, ["model.finetune_type=full"])
    assert full.train.learning_rate == FULL_RATE and load_config(file, ["train.learning_rate=1e-6"]).train.learning_rate == 1e-6
