"""Training in this process: what it costs, that it is on-policy, that it is what one computes by hand."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from transformers import T5EncoderModel

from flow_factory.algorithms.base import OnPolicyError
from flow_factory.core.ema import ema_decay
from flow_factory.data.order import Order
from flow_factory.rewards import PointwiseRewardModel, RewardModelOutput
from flow_factory.rewards.jpeg import kilobytes
from flow_factory.training import learner
from flow_factory.training.learner import Learner
from flow_factory.training.run import Run
from flow_factory.training.trainer import Trainer
from flow_factory.types import Rollout
from tests.tiny.run import TEST, TRAIN, forwards, logged, tiny, trained, write_rows, write_run

QUIET = ("eval.eval_freq=0", "train.ema_decay=0")


def epochs(run: Run) -> list[dict[str, float]]:
    """The metrics of every epoch, without evaluations and checkpoints."""
    return [run.trainer.epoch() for _ in range(run.context.config.train.max_epochs)]


def rolled_out(run: Run) -> tuple[Trainer, list[Rollout]]:
    """The trainer, and the first epoch's rollouts with their advantages."""
    rollouts = run.trainer.collector(0)
    run.trainer.score(rollouts)
    run.trainer.compute_advantages(rollouts)
    return run.trainer, rollouts


@pytest.mark.parametrize(
    ("overrides", "points"),
    [((), 4), (("train.kl_beta=0.1",), 8), (("train.num_inner_epochs=2",), 8), (("train.kl_beta=0.1", "train.num_inner_epochs=2"), 12),
     (("scheduler.num_sde_steps=2",), 8), (("train.enable_gradient_checkpointing=true",), 4)],
)  # fmt: skip
def test_an_epoch_costs_its_samples_and_its_points_and_nothing_else(tmp_path: Path, overrides: tuple[str, ...], points: int) -> None:
    """4 micro-batches of 3 steps; a forward a point, one more under the reference, one more pass an inner epoch; one check of effect."""
    run = tiny(tmp_path, *QUIET, *overrides)
    for extra in (1, 0):
        with forwards(FluxTransformer2DModel) as seen:
            run.trainer.epoch()
        assert len(seen) == 4 * 3 + points + extra


def test_encoders_run_once_a_distinct_row_and_never_again(tmp_path: Path) -> None:
    write_run(tmp_path)
    rows = [*TRAIN, TRAIN[0], TEST[0]]
    write_rows(tmp_path / "data" / "train.jsonl", [{"prompt": p} for p in rows])
    distinct = len(TRAIN) + len(TEST)
    few = len({rows[group.row] for group in Order((len(rows),), 2, 42).epoch(0)} | {rows[0], *TEST})  # what a run of one epoch draws
    for name, length, last, runs in (("a", 16, 4, distinct), ("b", 16, 4, 0), ("c", 12, 1, few), ("d", 12, 4, distinct - few)):
        with forwards(T5EncoderModel) as seen:
            tiny(tmp_path, f"run_name={name}", f"train.max_sequence_length={length}", f"train.max_epochs={last}")
        assert len(seen) == runs


@pytest.mark.parametrize(
    "overrides",
    [
        ("train.num_inner_epochs=2",),
        ("train.latent_storage_dtype=fp16", "scheduler.dynamics_type=CPS"),
        ("train.enable_gradient_checkpointing=true", "scheduler.num_sde_steps=2", "scheduler.dynamics_type=Dance-SDE"),
        ("mixed_precision=bf16",),
        ("mixed_precision=bf16", "model.finetune_type=full", "model.target_modules=all", "model.master_weight_dtype=fp32"),
        ("mixed_precision=bf16", "train.true_cfg_scale=2.0", "train.enable_gradient_checkpointing=true"),
    ],
)
def test_training_sees_what_sampling_saw_and_the_update_takes_effect(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    metrics = epochs(tiny(tmp_path, *QUIET, *overrides))
    assert [m["train/on_policy_error"] for m in metrics] == [0.0, 0.0]
    assert metrics[0]["train/first_update_effect"] > 0
    assert "train/first_update_effect" not in metrics[1]


def test_training_on_something_else_than_was_sampled_stops_the_run(tmp_path: Path) -> None:
    trainer, rollouts = rolled_out(tiny(tmp_path, *QUIET))
    trainer.learner.calls[None] = trainer.context.call | {"guidance_scale": 9.0}
    before = {k: p.clone() for k, p in trainer.context.policy.trained().items()}
    with pytest.raises(OnPolicyError, match="training does not compute what sampling computed"):
        trainer.learner.learn(trainer.groups(rollouts))
    assert all(torch.equal(p, before[k]) for k, p in trainer.context.policy.trained().items())


@pytest.mark.slow
def test_the_average_is_the_recursion_computed_by_hand(tmp_path: Path) -> None:
    run = tiny(tmp_path, "train.ema_decay=0.7", "train.ema_update_interval=2", "train.max_epochs=5", "train.warmup_steps=3")
    average = trained(run)
    for epoch in range(1, 6):
        run.trainer.epoch()
        if epoch % 2 == 0:
            d = ema_decay("power", epoch - 1, 0.7, warmup_steps=3)
            average = {k: d * a + (1 - d) * p for (k, a), p in zip(average.items(), trained(run).values(), strict=True)}
    kept = run.context.store.copies["ema"]
    for a, b in zip(average.values(), kept, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-7)
    with run.context.store.use("ema"):
        assert all(torch.equal(p, b) for p, b in zip(trained(run).values(), kept, strict=True))


def test_offloading_samples_changes_nothing_and_a_condition_waits_with_them_once_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [tiny(tmp_path, *QUIET, "train.kl_beta=0.1", f"train.offload_samples_to_cpu={x}", f"run_name={x}s") for x in ("false", "true")]
    drawn, brought = [], []
    learn, move = Learner.learn, learner.to_device

    def learning(self: Learner, groups: Any) -> None:
        drawn.append([[id(rollout.cond) for rollout in group] for group in groups])
        learn(self, groups)

    def moving(tensors: Any, device: Any) -> Any:
        brought.extend(c for c in (tensors, tensors.get("cond") or {}) if "prompt_embeds" in c)
        return move(tensors, device)

    monkeypatch.setattr(Learner, "learn", learning)
    monkeypatch.setattr(learner, "to_device", moving)
    for run in runs:
        read, conds = [], run.context.conds
        reading = type("", (), {"__getitem__": lambda _, k, read=read, conds=conds: read.append(conds[k]) or read[-1]})()  # type: ignore[misc]
        run.trainer.collector.context = replace(run.context, conds=reading)
        epochs(run)
        groups = [group for epoch in drawn for group in epoch]
        assert [len(group) for group in groups] == [2] * 4 and [len(set(group)) for group in groups] == [1] * 4
        assert len(read) == 4 and len(brought) == 2 * 4  # looked back at for the reference, and learnt from
        waits = run.context.config.train.offload_samples_to_cpu
        assert waits == ([id(c) for c in read] == [group[0] for group in groups])
        drawn.clear(), brought.clear()
    here, there = map(trained, runs)
    assert all(torch.equal(here[k], there[k]) for k in here)


def test_the_size_of_a_micro_batch_does_not_change_the_update(tmp_path: Path) -> None:
    settings = (*QUIET, "train.adam_epsilon=1e-3")
    runs = [tiny(tmp_path, *settings, f"train.per_device_batch_size={size}", f"run_name=of_{size}") for size in (1, 2, 4)]
    start = trained(runs[0])
    for run in runs:
        run.trainer.epoch()
    moves = [torch.cat([(p - start[k]).flatten() for k, p in trained(run).items()]) for run in runs]
    for move in moves[1:]:
        assert (move - moves[0]).norm() < 1e-3 * moves[0].norm()


class SometimesMute(PointwiseRewardModel):
    """Scores by size; the third picture that it is shown has no score."""

    required_fields = ("image",)

    def __call__(self, image: list) -> RewardModelOutput:
        scores = [-kilobytes(p) for p in image]
        self.shown = getattr(self, "shown", 0) + len(image)
        if self.shown == len(image):
            scores[2] = None
        return RewardModelOutput(scores, {"error": "the judge is asleep"})


def test_a_missing_score_is_masked_and_counted_and_training_goes_on(tmp_path: Path) -> None:
    settings = (*QUIET, f"rewards.reward_model={__name__}:SometimesMute")
    _, rollouts = rolled_out(tiny(tmp_path, *settings))
    assert [k for k, a in enumerate(torch.cat([r.advantage for r in rollouts])) if a == 0] == [2]
    first, second = epochs(tiny(tmp_path, *settings, "run_name=again"))
    assert first["train/missing_scores"] == first["train/unscored_samples"] == first["train/missing/size"] == 1
    assert second["train/missing_scores"] == second["train/missing/size"] == 0
    assert all(value == value for value in first.values()), "no NaN in what is logged"


EPOCH = {
    *(f"train/{k}" for k in ("reward_mean", "reward_size_mean", "reward_size_std", "zero_variance_share", "missing_scores")),
    *(f"train/{k}" for k in ("unscored_samples", "loss", "policy_loss", "ratio", "ratio_std", "clip_frac", "clip_frac_low")),
    *(f"train/{k}" for k in ("clip_frac_high", "approx_kl", "on_policy_error", "grad_norm", "learning_rate", "missing/size")),
    *(f"time/{k}_s" for k in ("rollout", "reward", "optimise", "epoch")), "perf/samples_per_s", "perf/peak_memory_gb",
}  # fmt: skip
EVALUATION = {"eval/reward_mean", "eval/reward_size_mean", "eval/reward_size_std", "eval/missing/size", "time/eval_s"}


def test_a_run_leaves_what_it_promises(tmp_path: Path) -> None:
    run = tiny(tmp_path, "train.kl_beta=0.1", "log.save_freq=1", "log.keep_last_n=1", "log.save_model_only=false")
    summary = run()
    lines = logged(run.folder, clock=True)
    assert [line["step"] for line in lines] == [0, 1, 1, 2, 2]
    assert all(set(line) >= EPOCH | {"train/kl_div", "train/kl_loss"} for line in lines[1::2])
    assert all(set(line) >= EVALUATION for line in lines[::2])
    assert "train/first_update_effect" in lines[1]
    there = {str(p.relative_to(run.folder)) for p in run.folder.rglob("*")}
    assert {"config.yaml", "metrics.jsonl", "summary.md", "curves.png", "before_after.png", "samples/eval_00002.png"} <= there
    assert sorted(p.name for p in (run.folder / "checkpoints").iterdir()) == ["epoch_2"]
    assert {"epoch": 2, "updates": 4}.items() <= json.loads((run.checkpoint() / "state" / "progress.json").read_text()).items()
    assert str(run.checkpoint()) in summary == (run.folder / "summary.md").read_text()


def test_the_first_update_of_a_warm_up_moves_the_weights(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = tiny(tmp_path, *QUIET, "train.lr_warmup_steps=3", "train.lr_total_steps=9")
    assert run.context.schedule.get_last_lr()[0] == pytest.approx(1e-3 / 3)
    with caplog.at_level(logging.WARNING):
        first, *_ = epochs(run)
    assert first["train/first_update_effect"] > 0 and "too small" not in caplog.text


@pytest.mark.parametrize("same", [True, False])
def test_a_group_starts_from_one_noise_if_asked_for(tmp_path: Path, same: bool) -> None:
    """Two groups of four in micro-batches of two, step 0 stochastic."""
    run = tiny(tmp_path, *QUIET, f"train.init_same_noise={same}", "scheduler.sde_steps=[0]")
    starts = torch.cat([r.steps[0].x for r in run.trainer.collector(0)]).flatten(1)
    ends = torch.cat([r.steps[0].x1 for r in run.trainer.collector(0)]).flatten(1)
    assert len(starts.unique(dim=0)) == (2 if same else 8)
    assert len(ends.unique(dim=0)) == 8
