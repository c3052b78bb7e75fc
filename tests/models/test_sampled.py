"""A state has the dimensions that are drawn and no others: those that a condition fills are in no number that training looks at."""

from typing import Any

import pytest
import torch
from torch import Tensor

from flow_factory.dynamics import DYNAMICS
from flow_factory.velocity import Recorder
from tests.conftest import ETA
from tests.models.cases import every_checkpoint
from tests.models.harness import tiny


@every_checkpoint
def test_the_velocity_depends_on_every_dimension_of_the_state(name: str) -> None:
    t = tiny(name)
    step = t.roll(noisy=(2,))[1].kept[0]
    x = step.x.clone().requires_grad_()
    step.x = x
    with torch.enable_grad():
        v = t.velocity(step)
        weights = torch.randn(v.shape, generator=torch.Generator().manual_seed(0))
        (gradient,) = torch.autograd.grad((v.float() * weights).sum(), x)
    assert (gradient == 0).float().mean() < 0.01


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
