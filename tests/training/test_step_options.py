"""Weights and strata of steps in runs: what an epoch costs, that it replays what was sampled, and that it goes on exactly."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel

from tests.tiny.run import forwards, read_state, tiny

FLASH = (
    "scheduler.dynamics_type=Flash-SDE", "scheduler.step_selection=stratified", "train.num_inference_steps=4",
    "train.step_weight=rectified", "train.unique_sample_num_per_epoch=3", "train.gradient_step_per_epoch=1", "train.clip_range=0.1",
)  # fmt: skip
TEMPFLOW = ("train.step_weight=noise", "train.num_inference_steps=4", "scheduler.num_sde_steps=2", "train.offload_samples_to_cpu=true")
RUNS: dict[str, tuple[tuple[str, ...], int, int]] = {"flash": (FLASH, 6, 1), "tempflow": (TEMPFLOW, 4, 2)}
"""Keys, micro-batches of an epoch, and trained steps of each."""
DPPO = ("train.trainer_type=dppo", "train.num_inference_steps=4", "train.direction=normalised", "train.kl_beta=0.1")
KEPT = ("log.save_freq=1", "log.save_model_only=false", "eval.eval_freq=0", "train.max_epochs=3")


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", RUNS)
def test_an_epoch_costs_what_grpos_does_and_is_on_policy(tmp_path: Path, name: str) -> None:
    keys, batches, points = RUNS[name]
    run = tiny(tmp_path, "eval.eval_freq=0", "train.ema_decay=0", *keys)
    for extra in (1, 0):  # the run's first update is looked at
        with forwards(FluxTransformer2DModel) as seen:
            metrics: dict[str, Any] = run.trainer.epoch()
        assert len(seen) == batches * (4 + points) + extra
        assert metrics["train/on_policy_error"] == 0
        if name == "flash":  # each of the three candidates once
            assert metrics["train/step_weight"] == pytest.approx(1, abs=1e-6)


@pytest.mark.exhaustive
@pytest.mark.parametrize("options", [FLASH, TEMPFLOW, DPPO], ids=["flash", "tempflow", "dppo"])
def test_a_run_goes_on_to_the_bit(tmp_path: Path, options: tuple[str, ...]) -> None:
    keys = (*KEPT, *options)
    tiny(tmp_path, *keys)()
    tiny(tmp_path, *keys, f"model.resume_path={tmp_path}/save/run/checkpoints/epoch_1", "run_name=resumed")()
    whole, on = (read_state(tmp_path / "save" / run / "checkpoints" / "epoch_3") for run in ("run", "resumed"))
    assert whole.keys() == on.keys() and all(torch.equal(whole[k], on[k]) for k in whole)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("many", "trunks"), [(2, 2), (None, 1), (1, 4)])
def test_branches_of_a_seed_part_at_their_groups_step_and_were_one_path_before(tmp_path: Path, many: int | None, trunks: int) -> None:
    """With one branch a seed it is GRPO with a step a group; the trunk is the ODE's own path."""
    keys = (
        "scheduler.step_selection=branch",
        f"scheduler.branches_per_seed={'null' if many is None else many}",
        "train.num_inference_steps=5",
    )
    keys = (*keys, "train.per_device_batch_size=4", "train.gradient_step_per_epoch=1", "scheduler.sde_steps=[2]")
    run = tiny(tmp_path, "eval.eval_freq=0", "train.ema_decay=0", *keys)
    collector = run.trainer.collector
    group = collector.epoch_groups(0)[0]
    with torch.no_grad():
        drawn = collector.sample(group, [0, 1, 2, 3], 0)
    (step,) = drawn.steps
    paths = {x.numpy().tobytes() for x in step.x}
    assert len(paths) == trunks and len({x.numpy().tobytes() for x in step.x1}) == 4, "the step's noise is each sample's own"
    assert run.trainer.epoch()["train/on_policy_error"] == 0
    if many == 1:
        same = tiny(tmp_path, "eval.eval_freq=0", "train.ema_decay=0", *keys[2:], "scheduler.step_selection=stratified", "run_name=same")
        with torch.no_grad():
            (other,) = same.trainer.collector.sample(group, [0, 1, 2, 3], 0).steps
        assert torch.equal(other.x, step.x) and torch.equal(other.x1, step.x1)
