"""The copies that follow the policy: when and how far they move, which of them rolls out, that a run goes on with them."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from flow_factory.training.run import Run
from tests.tiny.run import logged
from tests.training.test_learner import LAG, SHORT, copied, started


def blended(average: list[Tensor], weights: list[Tensor], decay: float) -> list[Tensor]:
    return [decay * a + (1 - decay) * w for a, w in zip(average, weights, strict=True)]


def assert_near(actual: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-7)


def ramp(k: int) -> float:
    """0-0.5-0.1-0.9"""
    return min(0.5 + 0.1 * k, 0.9)


@pytest.mark.parametrize(
    ("name", "overrides", "decays"),
    [
        ("nft", (LAG, "train.old_model_decay=0-0.5-0.1-0.9"), {"old": ramp}),
        ("crd", ("train.old_model_decay=0-0.5-0.1-0.9", "train.sampling_model_decay=4-0.0-0.3-1.0"),
         {"old": ramp, "sampling": lambda k: min(0.3 * max(k - 4, 0), 1.0)}),
        ("crd", ("train.use_old_for_loss=false",), {"old": lambda k: 1.0, "sampling": lambda k: 0.0}),
    ],
)  # fmt: skip
def test_an_old_policy_moves_after_an_epoch_by_the_optimiser_steps_taken(
    tmp_path: Path, name: str, overrides: tuple[str, ...], decays: dict
) -> None:
    """Two steps an epoch."""
    run = started(tmp_path, name, *SHORT, "train.learning_rate=1e-2", "train.max_epochs=3", *overrides)
    start = copied(run, "policy")
    expected = dict.fromkeys(decays, start)
    for epoch in (1, 2, 3) if name == "crd" else (1, 2):
        metrics = run.trainer.epoch()
        for copy, decay in decays.items():
            expected[copy] = blended(expected[copy], copied(run, "policy"), decay(2 * epoch))
            assert metrics[f"train/{copy}_decay"] == pytest.approx(decay(2 * epoch))
            assert_near(copied(run, copy), expected[copy])
    assert set(run.context.store.copies) == set(decays), "and nothing else is kept"


@pytest.mark.slow
def test_dgpos_average_moves_after_every_update(tmp_path: Path) -> None:
    settings = ("train.ema_ref_max_decay=0.5", "train.ema_ref_ramp_rate=0.2", "train.num_inner_epochs=2", "train.learning_rate=1e-2")
    run = started(tmp_path, "dgpo", *SHORT, *settings)
    average, updates = copied(run, "policy"), []
    run.context.engine.optimizer.register_step_post_hook(lambda *_: updates.append(copied(run, "policy")))
    for epoch in (1, 2):
        run.trainer.epoch()
        assert len(updates) == 4 * epoch == run.context.progress.updates
    for k, weights in enumerate(updates, 1):
        average = blended(average, weights, min(0.2 * k, 0.5))
    assert_near(copied(run, "ema_ref"), average)


# -- which weights roll out -----------------------------------------------------------------------------------------------------------


def states(run: Run, weights: str, epoch: int) -> list[Tensor]:
    """The final states that these weights draw in an epoch."""
    groups = run.trainer.collector.epoch_groups(epoch)
    with torch.no_grad(), run.context.store.use(weights):
        rollouts = [run.trainer.collector.sample(group, range(k, k + 2), epoch) for group in groups for k in (0, 2)]
    return [r.x0 for r in rollouts if r.x0 is not None]


@pytest.mark.parametrize(
    ("name", "overrides", "weights"),
    [
        ("nft", (LAG, "train.old_model_decay=0-0.5-0.1-0.9"), ["old"] * 3), ("nft", (), ["policy"] * 2),
        ("awm", (LAG, "train.old_model_decay=0-0.5-0.1-0.9"), ["old"] * 2),
        ("crd", ("train.sampling_model_decay=0-0.5-0.1-0.9",), ["sampling"] * 2),
        ("dgpo", ("train.switch_ema_ref=3", "train.ema_ref_ramp_rate=0.1"), ["policy", "policy", "ema_ref"]),
        ("dgpo", (LAG, "train.ema_ref_ramp_rate=0.1"), ["ema_ref"] * 2),
    ],
)  # fmt: skip
def test_pictures_are_those_of_the_weights_that_roll_out(tmp_path: Path, name: str, overrides: tuple[str, ...], weights: list[str]) -> None:
    run = started(tmp_path, name, *SHORT, "train.learning_rate=1e-2", "train.max_epochs=3", *overrides)
    for epoch, who in enumerate(weights):
        drawn = [r.x0 for r in run.trainer.collector(epoch)]
        assert len(drawn) == 4 and all(map(torch.equal, drawn, states(run, who, epoch))), f"epoch {epoch}"
        others = {"policy", *run.context.store.copies} - {who, "ref"} if epoch else set()
        for other in others - ({"old"} if name == "crd" else set()):
            assert not any(map(torch.equal, drawn, states(run, other, epoch))), f"epoch {epoch}: {other}"
        run.trainer.epoch()


# -- a run goes on --------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("nft", (LAG, "train.old_model_decay=0-0.5-0.1-0.9")),
        pytest.param("dgpo", ("train.switch_ema_ref=1", "train.ema_ref_ramp_rate=0.1", "train.dpo_beta=2000.0"), marks=pytest.mark.slow),
        pytest.param("crd", ("train.sampling_model_decay=0-0.5-0.1-0.9", "train.ema_decay=0.5"), marks=pytest.mark.exhaustive),
        pytest.param("awm", ("train.ratio_order=sum_first", "train.ema_kl_beta=0.1", "train.ema_decay=0.5"), marks=pytest.mark.slow),
    ],
)
def test_a_run_that_goes_on_ends_where_the_unbroken_one_does_to_the_bit(tmp_path: Path, name: str, overrides: tuple[str, ...]) -> None:
    settings = (*SHORT, "train.learning_rate=1e-2", "log.save_model_only=false", *overrides)
    whole = started(tmp_path, name, *settings, "train.max_epochs=2")
    whole()
    first = started(tmp_path, name, *settings, "train.max_epochs=1", "run_name=first")
    first()
    second = started(tmp_path, name, *settings, "train.max_epochs=2", "run_name=second", f"model.resume_path={first.folder}")
    assert second.context.progress.epoch == 1
    assert all(map(torch.equal, copied(first, "policy"), copied(second, "policy")))
    second()
    for weights in ("policy", *whole.context.store.copies):
        assert all(map(torch.equal, copied(whole, weights), copied(second, weights))), weights
        assert not any(map(torch.equal, copied(first, weights), copied(second, weights))), weights
    assert logged(second.folder) == [line for line in logged(whole.folder) if line["step"] > 1]
