"""The on-policy floor: measured before a run begins, where settings may make a replay differ from its rollout, and what follows of it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from flow_factory.algorithms.base import OnPolicyError
from flow_factory.check import report
from flow_factory.config import load_config, plan_of
from flow_factory.policy.compilation import MOST, VARIANTS, Shapes, require_few, signature
from flow_factory.training.replay_error import FEW, inexact, measure
from flow_factory.training.run import Run
from flow_factory.utils.errors import UserError
from tests.tiny.run import tiny, write_run

NAMED = "model.attn_backend=native"


def off_by(run: Run, monkeypatch: pytest.MonkeyPatch, much: float) -> None:
    """Every velocity that training asks for is another one than the rollout's."""
    velocity_of = run.trainer.learner.velocity_of
    monkeypatch.setattr(run.trainer.learner, "velocity_of", lambda *args: velocity_of(*args) * (1 + much))


def test_nothing_is_measured_where_all_is_exact(tmp_path: Path) -> None:
    assert measure(tiny(tmp_path).trainer) is None


def test_the_settings_of_which_nobody_can_promise_exactness(tmp_path: Path) -> None:
    def found(*keys: str) -> list[str]:
        config = load_config(write_run(tmp_path), keys)
        return inexact(config, plan_of(config))

    assert found() == [] and found("train.rollout_batch_size=auto") == [] and found("train.rollout_batch_size=2") == []
    assert found("model.compile=true", NAMED) == ["model.compile: true", "model.attn_backend: native"]
    assert found("train.rollout_batch_size=4") == ["train.rollout_batch_size: 4"]


@pytest.mark.slow
def test_the_floor_widens_the_bar_and_changes_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny(tmp_path, NAMED, "train.clip_range=1.0e-2")
    assert measure(run.trainer) == ("on-policy floor: 0.0e+00 in 3 replays, under model.attn_backend: native; train.clip_range is 1.0e-02")
    off_by(run, monkeypatch, 0.05)
    line = measure(run.trainer)
    floor = run.trainer.learner.checks.floor
    assert line is not None and 1e-3 < floor < 1e-2 and f"{floor:.1e} in 3 replays" in line
    assert run.context.progress.updates == 0 and not run.context.meter.values
    assert run.trainer.epoch()["train/on_policy_error"] > 1e-3  # beyond a tenth of the clip range
    run.trainer.learner.checks.floor = floor / (2 * FEW)
    with pytest.raises(OnPolicyError, match=r"more than a tenth of train.clip_range"):
        run.trainer.epoch()


def test_a_floor_above_the_clip_range_is_refused_with_one_that_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny(tmp_path, NAMED, "train.clip_range=1.0e-4")
    off_by(run, monkeypatch, 0.05)
    with pytest.raises(
        UserError, match=r"^train.clip_range: replays of one transition differ by .* more than its bound of 1.0e-04.* write "
    ):
        measure(run.trainer)


@pytest.mark.slow
def test_a_compiled_run_measures_its_floor_and_learns_the_same(tmp_path: Path, capsys: Any) -> None:
    """By the backend that is the model as it is; `tests/models/test_compiled.py` has the others."""
    keys = ("model.compile=true", "model.compile_backend=eager", "train.enable_gradient_checkpointing=0.5", "train.max_epochs=1")
    for name in "ab":
        (tmp_path / name).mkdir()
    compiled, plain = tiny(tmp_path / "a", *keys), tiny(tmp_path / "b", "train.max_epochs=1")
    assert "0.0e+00" in (measure(compiled.trainer) or "")
    assert compiled.trainer.epoch()["train/on_policy_error"] == plain.trainer.epoch()["train/on_policy_error"] == 0
    mine, theirs = (run.context.policy.trained() for run in (compiled, plain))
    assert all(torch.equal(p, theirs[name]) for name, p in mine.items())
    assert not compiled.context.adapter.field.recording


def test_rows_make_as_many_shapes_as_their_conditions_have() -> None:
    conds = [{"prompt_embeds": torch.zeros(1, n, 4), "image": [torch.zeros(3, m)]} for n, m in ((5, 1), (5, 1), (6, 1), (5, 2))]
    assert len({signature(cond) for cond in conds}) == 3
    with pytest.raises(
        UserError, match=rf"model.compile: the rows make {MOST + 1} different shapes .* at most {MOST} are supported: write"
    ):
        require_few(MOST + 1)


def test_the_bound_holds_what_a_run_calls(tmp_path: Path) -> None:
    conds = [{"prompt_embeds": torch.zeros(1, n, 4)} for n in (5, 6)]
    with torch._dynamo.config.patch(recompile_limit=8, accumulated_recompile_limit=256, fail_on_recompile_limit_hit=False):
        assert Shapes(load_config(write_run(tmp_path))).allow(conds, conds[:1]) == 2
        limits = torch._dynamo.config
        assert limits.recompile_limit == limits.accumulated_recompile_limit == VARIANTS * 2 * (2 * 2 + 2)
        assert limits.fail_on_recompile_limit_hit


def test_the_check_says_what_is_compiled(tmp_path: Path) -> None:
    text, _ = report(load_config(write_run(tmp_path), ["model.compile=true"]))
    line = next(line for line in text.splitlines() if "compiled by" in line)
    assert line.strip().startswith(
        "compiled by inductor: 2 FluxTransformerBlock, 2 FluxSingleTransformerBlock; the training rows make 1 shape, "
    )
    assert any("GB  activations of a compiled forward" in line for line in text.splitlines())
