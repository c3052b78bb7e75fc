"""Final states are decoded by the pipeline's own code with gradient: the rollout's pictures, by no forward of a transformer."""

import numpy as np
import pytest
import torch
from torch import Tensor

from flow_factory.core.condition_memo import ConditionMemo
from flow_factory.types import Clip
from tests.models.cases import EACH
from tests.models.harness import small, tiny


def levels(media: object) -> Tensor:
    """(frames, 3, h, w) of 256 levels."""
    pictures = media.frames if isinstance(media, Clip) else [media]
    return torch.stack([torch.from_numpy(np.asarray(p.convert("RGB"))).permute(2, 0, 1).float() for p in pictures])


@pytest.mark.parametrize("name", [n if n == "flux1" else pytest.param(n, marks=pytest.mark.exhaustive) for n in EACH])
def test_final_states_are_decoded_to_the_rollouts_pictures_with_gradient(name: str) -> None:
    t, memo = tiny(name), ConditionMemo()
    media, recorder = t.roll(memo=memo)
    pictures = list(media)
    x = recorder.final.float().requires_grad_()
    calls: list[object] = []
    hooks = [module.register_forward_hook(lambda *_: calls.append(None)) for module in t.transformers]
    with small(t.adapter.pipe):
        pixels = t.adapter.decode(x, t.conds[0], t.call, memo)
    for hook in hooks:
        hook.remove()
    assert not calls
    assert len(pixels) == len(pictures) and pixels.min() >= 0 and pixels.max() <= 1
    for mine, theirs in zip(pixels, pictures, strict=True):
        seen = mine if mine.ndim == 4 else mine[None]
        assert (seen.detach() * 255 - levels(theirs)).abs().max() <= 0.51
    (slope,) = torch.autograd.grad(pixels.float().sum(), x)
    assert slope.isfinite().all() and all(one.any() for one in slope)


@pytest.mark.parametrize("name", [n if n == "flux1" else pytest.param(n, marks=pytest.mark.exhaustive) for n in EACH])
def test_what_nobody_looks_at_is_drawn_and_not_decoded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The states are the same."""
    t = tiny(name)
    _, known = t.roll()
    pipe = t.adapter.pipe
    for part in (getattr(pipe, part, None) for part in ("vae", "audio_vae", "vocoder")):
        if part is not None:
            monkeypatch.setattr(part, "decode" if hasattr(part, "decode") else "forward", broken)
    media, recorder = t.roll(seen=False)
    assert len(media) == 0 and torch.equal(recorder.final, known.final) and len(recorder.kept) == len(known.kept) > 0
    assert all(torch.equal(a.x1, b.x1) and torch.equal(a.logp, b.logp) for a, b in zip(recorder.kept, known.kept, strict=True))


def broken(*_: object, **__: object) -> None:
    raise AssertionError("decoded")
