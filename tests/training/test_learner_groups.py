"""Groups in the learner: samples and groups that are left out, groups that are cut up, and what is logged."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from flow_factory.distributed import shared_groups
from flow_factory.distributed.shared_groups import replace_all, share
from flow_factory.rewards import PointwiseRewardModel, RewardModelOutput
from flow_factory.rewards.jpeg import kilobytes
from flow_factory.training.run import Run
from flow_factory.types import Rollout
from tests.conftest import cells
from tests.tiny.run import forwards, tiny
from tests.training.test_learner import LAG, ONE, SHORT, TWICE, copied, started, watched


class OftenTheSame(PointwiseRewardModel):
    """Scores by size, but pictures of anything red or yellow are all alike."""

    required_fields = ("prompt", "image")

    def __call__(self, prompt: list[str], image: list) -> RewardModelOutput:
        alike = [any(word in p for word in ("red", "yellow", "cat")) for p in prompt]
        return RewardModelOutput([0.0 if same else -kilobytes(p) for same, p in zip(alike, image, strict=True)])


class Alike(PointwiseRewardModel):
    """All pictures are worth the same."""

    required_fields = ("image",)

    def __call__(self, image: list) -> RewardModelOutput:
        return RewardModelOutput([0.0] * len(image))


def rolled(run: Run) -> list[Rollout]:
    """An epoch's rollouts with their advantages."""
    rollouts = run.trainer.collector(run.context.progress.epoch)
    run.trainer.judge(rollouts)
    return rollouts


def moved(run: Run, start: list[Tensor]) -> Tensor:
    return torch.cat([(a - b).flatten() for a, b in zip(copied(run, "policy"), start, strict=True)])


# -- groups that teach nothing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "overrides", "saved"),
    [
        ("grpo", (), 6), ("dpo", (), 3 + 3), ("awm", (*SHORT, ONE), 12),
        ("awm", (*SHORT, ONE, TWICE, "train.ratio_order=sum_first"), 12 + 12 + 12), ("dgpo", ("train.num_train_timesteps=1",), 6 + 6 + 12),
    ],
)  # fmt: skip
def test_groups_of_no_variance_are_left_out_and_the_update_is_the_same(
    tmp_path: Path, name: str, overrides: tuple[str, ...], saved: int
) -> None:
    """Three of six groups teach nothing: six micro-batches of one or two points, or three pairs. Kept weights and surveys are saved too."""
    settings = ("train.unique_sample_num_per_epoch=6", f"rewards.reward_model={__name__}:OftenTheSame", *overrides)
    weights, costs, metrics = [], [], []
    for drop in ("false", "true"):
        run = started(tmp_path, name, *settings, f"train.drop_zero_variance={drop}", f"run_name={drop}_")
        with forwards(FluxTransformer2DModel) as seen:
            metrics.append(run.trainer.epoch())
        weights.append(copied(run, "policy"))
        costs.append(len(seen))
    assert all(map(torch.equal, *weights)) and costs[0] - costs[1] == saved
    assert metrics[1]["train/dropped_share"] == 0.5 and "train/dropped_share" not in metrics[0]
    assert metrics[0]["train/grad_norm"] == metrics[1]["train/grad_norm"] > 0


@pytest.mark.parametrize("name", ["grpo", "awm", "dgpo"])
def test_where_nothing_is_to_be_learnt_every_process_still_makes_a_forward(tmp_path: Path, name: str) -> None:
    run = started(tmp_path, name, *SHORT[:1], f"rewards.reward_model={__name__}:Alike", "train.drop_zero_variance=true")
    with watched(run) as spy:
        metrics = run.trainer.epoch()
    assert len(spy.seen) == 2 * run.context.plan.trained_points
    assert metrics["train/grad_norm"] == 0


@pytest.mark.parametrize("other", [[0.0, 0.0], [0.5, -0.5]])
def test_a_silent_part_of_a_group_that_speaks_stays_where_the_group_is_compared(tmp_path: Path, other: list[float]) -> None:
    """DGPO: the first group is silent in its first half alone, the second in both halves or in one."""
    weights, seen = [], []
    for drop in ("false", "true"):
        run = started(tmp_path, "dgpo", *SHORT, ONE, "train.dpo_beta=3e4", f"train.drop_zero_variance={drop}", f"run_name={drop}_")
        rollouts = rolled(run)
        for batch, advantage in zip(rollouts, ([0.0, 0.0], [1.0, -1.0], [0.0, 0.0], other), strict=True):
            batch.advantage = torch.tensor(advantage)
        with watched(run) as spy:
            run.trainer.learner.learn(run.trainer.groups(rollouts))
        weights.append(copied(run, "policy"))
        seen.append(len(spy.seen))
        assert all(p.peers is not None for p in spy.seen)
    assert all(map(torch.equal, *weights)) and seen == [8, 8 if any(other) else 4]


# -- samples that are left out --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["grpo", "nft", "dgpo"])
def test_best_of_n_trains_on_the_best_and_the_worst(tmp_path: Path, name: str) -> None:
    run = started(tmp_path, name, *(() if name == "grpo" else SHORT), "train.best_of_n=2")
    rollouts = rolled(run)
    advantages = [torch.cat([r.advantage for r in group]) for group in run.trainer.groups(rollouts)]
    with watched(run) as spy:
        run.trainer.learner.learn(run.trainer.groups(rollouts))
    per_group = len(spy.seen) // 2
    assert run.context.progress.updates == 2 and per_group == run.context.plan.trained_points
    for k, advantage in enumerate(advantages):
        for point in spy.seen[k * per_group : (k + 1) * per_group]:
            assert sorted(point.advantage.tolist()) == [advantage.min().item(), advantage.max().item()]


def test_what_best_of_n_trains_on_is_still_what_was_sampled(tmp_path: Path) -> None:
    metrics = started(tmp_path, "grpo", "train.best_of_n=2", "train.true_cfg_scale=2.0").trainer.epoch()
    assert metrics["train/on_policy_error"] < 1e-6


def test_a_pair_is_trained_on_in_one_update_a_group(tmp_path: Path) -> None:
    run = started(tmp_path, "dpo")
    rollouts = rolled(run)
    ends = [torch.cat([r.advantage for r in group]) for group in run.trainer.groups(rollouts)]
    states = [torch.cat([r.x0 for r in group if r.x0 is not None]) for group in run.trainer.groups(rollouts)]
    with watched(run) as spy:
        run.trainer.learner.learn(run.trainer.groups(rollouts))
    assert run.context.progress.updates == len(spy.seen) == 2
    for point, advantage, x0 in zip(spy.seen, ends, states, strict=True):
        assert point.x0 is not None and torch.equal(point.x0, x0[[int(advantage.argmax()), int(advantage.argmin())]])


# -- groups that are cut up -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("nft", (LAG, "train.old_model_decay=0-0.5-0.1-0.9", "train.kl_beta=0.1")),
        ("dgpo", ("train.dpo_beta=3e4", "train.clip_range=0.5", "train.kl_beta=0.1", "train.ema_ref_ramp_rate=0.1")),
        ("crd", ("train.weight_temp=0.5",)),
    ],
)
def test_the_size_of_a_micro_batch_does_not_change_the_update(tmp_path: Path, name: str, overrides: tuple[str, ...]) -> None:
    """Of four, after the first of which the weights that are compared differ."""
    moves, logged = [], []
    for size in (2, 4):
        run = started(
            tmp_path,
            name,
            *SHORT,
            TWICE,
            "train.adam_epsilon=1e-3",
            f"train.per_device_batch_size={size}",
            f"run_name=of_{size}",
            *overrides,
        )
        start = copied(run, "policy")
        logged.append(run.trainer.epoch())
        moves.append(moved(run, start))
    assert (moves[1] - moves[0]).norm() < 1e-3 * moves[0].norm()
    if name == "dgpo":
        assert abs(logged[0]["train/group_weight"] - 0.5) > 0.01, "the weight of the group says something"


@pytest.mark.parametrize("name", ["dgpo", "crd"])
def test_a_group_that_is_cut_by_an_update_is_compared_anew_as_a_whole(tmp_path: Path, name: str) -> None:
    """An update a micro-batch: each group's centre or weight is that of all its samples under the weights of the moment."""
    run = started(tmp_path, name, *SHORT, "train.gradient_step_per_epoch=4", "train.dpo_beta=3e4" if name == "dgpo" else "train.kl_beta=0")
    with watched(run) as spy:
        run.trainer.epoch()
    peers = [torch.stack([torch.as_tensor(x).flatten()[0] for x in (p.peers if name == "crd" else (p.peers,))]) for p in spy.seen]
    assert len(peers) == 8
    first, second = peers[:2], peers[2:4]
    assert not any(map(torch.equal, first, second)), "the policy has moved in between"
    if name == "crd":
        assert all(a[1] == b[1] for a, b in zip(first, second, strict=True)), "what is given has not"


def test_sum_first_has_one_ratio_for_all_noise_levels_of_a_sample(tmp_path: Path) -> None:
    run = started(
        tmp_path, "awm", *SHORT, LAG, "train.ratio_order=sum_first", "train.old_model_decay=0-0.9-0.1-0.9", "train.learning_rate=1e-2"
    )
    for epoch in range(2):
        with watched(run) as spy:
            run.trainer.epoch()
        ratios = [m["ratio"] for m in spy.metrics]
        assert all(map(torch.equal, ratios[::2], ratios[1::2]))
        assert epoch == 0 or not any((r == 1).any() for r in ratios)


# -- what is logged -------------------------------------------------------------------------------------------------------------------

EVERY = {"loss", "policy_loss", "grad_norm", "learning_rate", "reward_mean", "zero_variance_share", "first_update_effect"}
RATIO = {"ratio", "ratio_std"}
CLIPS = {"clip_frac", "clip_frac_low", "clip_frac_high"}
LOGGED = {
    "grpo": RATIO | CLIPS | {"approx_kl", "kl_div", "kl_loss", "on_policy_error"},
    "grpo-guard": RATIO | CLIPS | {"approx_kl", "kl_div", "kl_loss", "on_policy_error"},
    "dppo": RATIO | {"approx_kl", "kl_old", "kl_old_max", "far_frac", "far_frac_low", "far_frac_high", "kl_div", "on_policy_error"},
    "nft": {"loss_positive", "loss_negative", "optimality", "policy_shift", "kl_div", "kl_loss"},
    "awm": RATIO | CLIPS | {"matching_log_prob", "kl_div", "kl_loss"},
    "dpo": {"margin", "pair_accuracy", "ties", "error_chosen", "error_rejected"},
    "dgpo": RATIO | {"clip_frac", "group_weight", "matching_error", "matching_error_ref", "ema_ref_decay", "kl_div", "kl_loss"},
    "crd": {"implicit_reward", "given_reward", "old_decay", "sampling_decay", "kl_div", "kl_loss"},
}


@cells("name", [(name,) for name in LOGGED], {("dppo",)})
def test_what_an_epoch_logs(tmp_path: Path, name: str) -> None:
    run = started(tmp_path, name, *(() if name == "dpo" else ("train.kl_beta=0.1",)))
    metrics = {k.removeprefix("train/"): v for k, v in run.trainer.epoch().items() if k.startswith("train/")}
    assert set(metrics) >= EVERY | LOGGED[name]
    assert not (RATIO | CLIPS) & set(metrics) - LOGGED[name]
    assert all(v == v for v in metrics.values()), "no NaN"


@pytest.mark.parametrize("waits", [False, True])
def test_micro_batches_of_other_processes_share_the_condition_of_their_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: bool
) -> None:
    run = tiny(tmp_path, "eval.eval_freq=0", f"train.offload_samples_to_cpu={waits}")
    rollouts, conds = rolled(run), run.context.conds
    come = [replace_all(r, "cpu", cond={}, memo=None) for r in rollouts]
    monkeypatch.setattr(shared_groups, "exchange", lambda accelerator, parts: {1: come})
    read: list[int] = []
    counting: Any = type("", (), {"__getitem__": lambda _, k: read.append(k) or conds[k]})()
    mine = [rollouts[0]]
    found = share(run.context.accelerator, run.context.plan.trained, mine, counting, waits)
    assert [r.ids for r in found] == [r.ids for r in rollouts] and read == [rollouts[-1].row.id]
    assert [[a.cond is b.cond for b in found] for a in found] == [[a.group == b.group for b in found] for a in found]
