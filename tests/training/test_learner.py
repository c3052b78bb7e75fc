"""What an epoch of each algorithm costs, in forwards of the transformer, and that the kept velocities are those of the kept weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from flow_factory.algorithms.base import Turn
from flow_factory.training.run import Run
from flow_factory.types import Metrics, Point, Velocity
from tests.conftest import cells
from tests.tiny.run import forwards, tiny

QUIET = ("eval.eval_freq=0", "train.ema_decay=0")
STEPS = 3


def started(folder: Path, name: str, *overrides: str) -> Run:
    """A run of the algorithm: two groups of four in micro-batches of two, an optimiser step a group; nobody is guided."""
    plain = ("train.kl_cfg=1.0",) if name == "crd" else ()
    return tiny(folder, *QUIET, f"train.trainer_type={name}", *plain, *overrides)


class Watched:
    """The algorithm, with every training point and what its loss was told of it."""

    def __init__(self, algorithm: Any):
        self.algorithm = algorithm
        self.seen: list[Point] = []
        self.kept: list[dict[str, Tensor]] = []
        self.metrics: list[Metrics] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.algorithm, name)

    def turns(self, update: int) -> list[Turn]:
        return [replace(turn, loss=self.loss) for turn in self.algorithm.turns(update)]

    def loss(self, point: Point, velocity: Velocity) -> tuple[Tensor, Metrics]:
        loss = self.algorithm.loss(point, velocity)
        self.seen.append(point)
        self.kept.append({name: velocity(point, name) for name in self.algorithm.weights})
        self.metrics.append(loss[1])
        return loss


@contextmanager
def watched(run: Run) -> Iterator[Watched]:
    """The learner's algorithm while the epochs inside run."""
    learner = run.trainer.learner
    context, spy = learner.context, Watched(learner.context.algorithm)
    learner.context = replace(context, algorithm=spy)  # type: ignore[arg-type]
    yield spy
    learner.context = context


# -- what an epoch costs --------------------------------------------------------------------------------------------------------------

KL, CFG, KL_CFG, TWICE = "train.kl_beta=0.1", "train.true_cfg_scale=2.0", "train.kl_cfg=2.0", "train.num_inner_epochs=2"
LAG, SUM, BEST, WHOLE = "train.off_policy=true", "train.ratio_order=sum_first", "train.best_of_n=2", "train.per_device_batch_size=4"
LEVELS = "train.num_train_timesteps=3"
CUT, ONE, EMA = "train.gradient_step_per_epoch=4", "train.gradient_step_per_epoch=1", ("train.ema_kl_beta=0.1", "train.ema_decay=0.9")
FRACTION = ("scheduler.step_selection=fraction", "scheduler.sde_fraction=0.5")

# An algorithm and its settings; micro-batches that roll out; those that are trained on, times the points of each; forwards for the policy
# at a point, and for all kept weights; "old" ones that an epoch's first window finds by itself; surveys of all points. Forwards of the
# policy and surveys are those of all inner epochs.
COSTS: list[tuple[str, tuple[str, ...], int, int, int, int, int, float]] = [
    ("grpo", (), 4, 4, 1, 0, 0, 0), ("grpo", (KL, TWICE), 4, 4, 2, 1, 0, 0), ("grpo", (CFG, KL), 8, 4, 2, 2, 0, 0),
    ("grpo", (BEST, KL), 4, 2, 1, 1, 0, 0), ("grpo", FRACTION, 4, 4, 1, 0, 0, 0),
    ("grpo", ("scheduler.num_sde_steps=2",), 4, 8, 1, 0, 0, 0), ("grpo-guard", (KL, WHOLE), 2, 2, 1, 1, 0, 0),
    ("nft", (), 4, 8, 1, 1, 4, 0), ("nft", (ONE,), 4, 8, 1, 1, 8, 0), ("nft", (CUT, KL), 4, 8, 1, 2, 2, 0),
    ("nft", (TWICE, KL), 4, 8, 2, 2, 4, 0), ("nft", (LAG, KL, TWICE), 4, 8, 2, 2, 0, 0),
    ("nft", (CFG, KL), 8, 8, 1, 2, 4, 0), ("nft", (BEST,), 4, 4, 1, 1, 2, 0), ("nft", ("train.num_train_timesteps=1",), 4, 4, 1, 1, 2, 0),
    ("awm", (), 4, 8, 1, 1, 4, 0), ("awm", (KL, *EMA), 4, 8, 1, 3, 4, 0), ("awm", (CFG, *EMA), 8, 8, 1, 2, 4, 0),
    ("awm", (SUM,), 4, 8, 1, 1, 4, 1 / 2), ("awm", (SUM, TWICE), 4, 8, 2, 1, 4, 3 / 2), ("awm", (SUM, ONE), 4, 8, 1, 1, 8, 0),
    ("awm", (LAG, SUM), 4, 8, 1, 1, 0, 1), ("awm", (LAG, SUM, TWICE), 4, 8, 2, 1, 0, 2),
    ("dpo", (), 4, 2, 1, 1, 0, 0), ("dpo", (CFG, TWICE), 8, 2, 2, 1, 0, 0), ("dpo", (LEVELS,), 4, 6, 1, 1, 0, 0),
    ("dgpo", (), 4, 4, 1, 2, 0, 1), ("dgpo", (WHOLE,), 2, 2, 1, 2, 0, 0), ("dgpo", (TWICE, KL), 4, 4, 2, 2, 0, 2),
    ("dgpo", (CUT,), 4, 4, 1, 2, 0, 2), ("dgpo", (LAG, "train.use_ema_ref=true"), 4, 4, 1, 1, 0, 1),
    ("dgpo", ("train.clip_dsm=false",), 4, 4, 1, 1, 0, 1),
    ("dgpo", (CFG, KL_CFG), 8, 4, 1, 3, 0, 1), ("dgpo", (BEST,), 4, 2, 1, 2, 0, 0),
    ("crd", (), 4, 8, 1, 2, 0, 1), ("crd", (WHOLE,), 2, 4, 1, 2, 0, 0), ("crd", ("train.kl_beta=0", TWICE), 4, 8, 2, 1, 0, 2),
    ("crd", (CFG, KL_CFG), 8, 8, 1, 3, 0, 1), ("crd", ("train.kl_beta=0", KL_CFG), 4, 8, 1, 1, 0, 1), ("crd", (CUT,), 4, 8, 1, 2, 0, 2),
]  # fmt: skip
MORE: list[tuple[str, tuple[str, ...], int, int, int, int, int, float]] = [
    ("dppo", (KL,), 4, 4, 1, 1, 0, 0), ("dppo", (KL, "train.kl_guidance_scale=2.0"), 4, 4, 1, 2, 0, 0),
]  # fmt: skip


@cells("name", "overrides", "rolled", "points", "policy", "kept", "found", "surveys", [*COSTS, *MORE], MORE)
def test_an_epoch_costs(
    tmp_path: Path, name: str, overrides: tuple[str, ...], rolled: int, points: int, policy: int, kept: int, found: int, surveys: float
) -> None:
    """And once a run, the policy's at one point, to see that an update has an effect."""
    run = started(tmp_path, name, *overrides)
    run.context.progress.updates = 1  # as if it went on
    with forwards(FluxTransformer2DModel) as seen:
        run.trainer.epoch()
    assert len(seen) == rolled * STEPS + points * (policy + kept + surveys) - found


@pytest.mark.parametrize(("name", "overrides", "once"), [("grpo", (CFG,), 2), ("nft", (CFG,), 1), ("crd", (ONE,), 1), ("dpo", (WHOLE,), 2)])
def test_a_run_asks_once_whether_an_update_has_an_effect(tmp_path: Path, name: str, overrides: tuple[str, ...], once: int) -> None:
    """At one point of the policy; and once what shape an answer has, for a pair out of micro-batches of another size."""
    run, costs = started(tmp_path, name, *overrides), []
    for _ in range(2):
        with forwards(FluxTransformer2DModel) as seen:
            metrics = run.trainer.epoch()
        costs.append((len(seen), "train/first_update_effect" in metrics))
    (first, told), later = costs
    assert (first - once, False) == later and told


SHORT = ("train.num_inference_steps=2", "train.num_train_timesteps=2")
# -- the kept velocities are those of the kept weights --------------------------------------------------------------------------------


def copied(run: Run, name: str) -> list[Tensor]:
    with run.context.store.use(name):
        return [p.detach().clone() for p in run.context.policy.trained().values()]


def velocities_under(run: Run, weights: list[Tensor], name: str, points: list[Point]) -> list[Tensor]:
    """With the guidance that belongs to the name."""
    run.context.store.copies["probe"] = weights
    with torch.no_grad(), run.context.store.use("probe"):
        found = [run.trainer.learner.velocity_of(point, name) for point in points]
    del run.context.store.copies["probe"]
    return found


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("nft", ()),
        ("nft", (TWICE,)),
        ("nft", (LAG, TWICE)),
        ("awm", (TWICE,)),
        ("awm", (SUM, TWICE)),
        ("awm", (LAG,)),
        ("nft", (CFG, TWICE)),
    ],
)
def test_the_old_policy_is_the_one_that_sampled_to_the_bit(tmp_path: Path, name: str, overrides: tuple[str, ...]) -> None:
    run = started(tmp_path, name, *SHORT, "train.old_model_decay=0-0.5-0.1-0.9", *overrides)
    for epoch in range(2):
        rolled = copied(run, run.context.algorithm.rolls_out(run.context.progress.updates))
        with watched(run) as spy:
            run.trainer.epoch()
        assert len(spy.seen) == 8 * run.context.config.train.num_inner_epochs
        wanted = velocities_under(run, rolled, "old", spy.seen)
        assert all(torch.equal(k["old"], w) for k, w in zip(spy.kept, wanted, strict=True)), f"epoch {epoch}"
        now = velocities_under(run, copied(run, "policy"), "old", spy.seen)
        assert not any(torch.equal(k["old"], v) for k, v in zip(spy.kept, now, strict=True)), "the policy has moved on"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "overrides", "weights"),
    [
        ("dgpo", (KL_CFG, CFG), ("ref", "ema_ref")),
        pytest.param("crd", (KL_CFG,), ("ref", "old"), marks=pytest.mark.exhaustive),
        pytest.param("awm", (KL, *EMA), ("ref", "ema"), marks=pytest.mark.exhaustive),
    ],
)
def test_other_kept_velocities_are_those_of_the_copies_as_the_epoch_began(
    tmp_path: Path, name: str, overrides: tuple[str, ...], weights: tuple[str, ...]
) -> None:
    """Also in a second inner epoch; the untrained model with its own guidance."""
    averages = {"dgpo": ("train.ema_ref_max_decay=0.9", "train.ema_ref_ramp_rate=0.2")}.get(name, ())
    run = started(tmp_path, name, *SHORT, TWICE, "train.ema_update_interval=1", *averages, *overrides)
    start = copied(run, "policy")
    for _ in range(2):
        before = {w: start if w == "ref" else copied(run, w) for w in weights}
        with watched(run) as spy:
            run.trainer.epoch()
        for w in weights:
            wanted = velocities_under(run, before[w], w, spy.seen)
            assert all(torch.equal(k[w], v) for k, v in zip(spy.kept, wanted, strict=True)), w
    assert not any(map(torch.equal, start, copied(run, "policy")))


def test_the_reference_is_guided_where_the_policy_is_not(tmp_path: Path) -> None:
    run = started(tmp_path, "crd", KL_CFG, *SHORT)
    start = copied(run, "policy")
    with watched(run) as spy:
        run.trainer.epoch()
    bare = velocities_under(run, start, "old", spy.seen)
    assert not any(torch.equal(k["ref"], v) for k, v in zip(spy.kept, bare, strict=True))
