"""A state has the dimensions that are drawn and no others: those that a condition fills are in no number that training looks at."""

from typing import Any

import pytest
import torch
from torch import Tensor

from flow_factory.core.dynamics import DYNAMICS
from flow_factory.core.scheduler_seam import Recorder
from flow_factory.models.proof import LITTLE, prove, unseen
from tests.conftest import ETA
from tests.models.cases import every_checkpoint
from tests.models.harness import small, tiny


@every_checkpoint
def test_the_velocity_depends_on_every_dimension_of_the_state(name: str) -> None:
    t = tiny(name)
    with small(t.adapter.pipe):
        assert unseen(t.adapter, t.conds[0], t.call) < LITTLE


def test_a_pipeline_that_fills_a_part_of_its_latents_is_said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that no family knows, and so none says which."""
    t = tiny("wan22-5b-i2v")
    monkeypatch.setattr(t.adapter.field, "sampled", lambda x: None)
    prove(t.adapter, t.conds[0], t.call, 2)
    assert "of its latents change no velocity" in caplog.text and "`sampled`" in caplog.text
    caplog.clear()
    monkeypatch.undo()
    prove(t.adapter, t.conds[0], t.call, 2)
    assert "latents" not in caplog.text


@pytest.mark.parametrize("dynamics", ["Flow-SDE", "CPS"])
def test_log_probabilities_are_those_of_the_frames_that_are_drawn(dynamics: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against all that the pipeline steps, cut down to them; nothing is added to the first frame, which is the picture's."""
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    stepped = Recorder.step

    def spy(self: Recorder, v: Tensor, t: Tensor, x: Tensor, **rest: Any) -> tuple[Tensor]:
        (x1,) = stepped(self, v, t, x, **rest)
        seen.append((x, v, x1))
        return (x1,)

    monkeypatch.setattr(Recorder, "step", spy)
    kept, kernel = tiny("wan22-5b-i2v").roll(dynamics=dynamics)[1].kept, DYNAMICS[dynamics]
    assert len(kept) == 3
    for step in kept:
        x, v, x1 = seen[step.index]
        assert torch.equal(x1[:, :, 0], x[:, :, 0])
        x, v, x1 = (whole[:, :, 1:] for whole in (x, v, x1))
        assert torch.equal(step.x1, x1.flatten(1)) and not torch.equal(x1, x)
        logp = kernel.log_prob(x1, *kernel.step(x, v, step.s, step.s1, ETA, step.ceiling))
        assert torch.allclose(step.logp, logp, rtol=1e-6)
