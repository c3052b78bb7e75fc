"""Nothing in a denoising loop has the host wait for a GPU: it would have no work for it afterwards.

Seen without one: the operations are the same on a CPU. Those that wait are those whose result, or its size, the host must know.
"""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import flow_factory
from flow_factory.core.scheduler_seam import Recorder, place_of
from tests.conftest import STEPS
from tests.models.cases import EACH
from tests.models.harness import Tiny, tiny

WAITS = {torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.masked_select}
INDEXING = {torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_, torch.ops.aten._index_put_impl_}
KNOWN = {
    "pipeline_wan.py": "A14B: asks of each time which expert's it is; the noise level that it reads is on the CPU",
    "pipeline_wan_i2v.py": "A14B: asks of each time which expert's it is",
    "transformer_hidream_image.py": "reads the sizes of the pictures",
    "transformer_hunyuan_video15.py": "sorts tokens by masks, and asks whether there is a picture",
}
"""Of diffusers' own: {file: why it waits}."""
OURS, HERE = Path(flow_factory.__file__).parent, Path(__file__)


class Waiting(TorchDispatchMode):
    """The places, as "file:line: code", from which operations come that wait; only while it is `on`."""

    def __init__(self) -> None:
        super().__init__()
        self.on, self.places = False, set[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        op = func.overloadpacket
        if self.on and (op in WAITS or op in INDEXING and any(i is not None and i.dtype == torch.bool for i in args[1])):
            frames = [f for f in traceback.extract_stack() if "/torch/" not in f.filename and Path(f.filename) != HERE]
            self.places.add(f"{frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}")
        return func(*args, **(kwargs or {}))


@contextmanager
def looping(t: Tiny) -> Iterator[Waiting]:
    """Watches from the first call of a transformer to the last step of the scheduler."""
    waiting, stepped = Waiting(), Recorder.step

    def begin(module: nn.Module, args: Any) -> None:
        waiting.on = True

    def step(self: Recorder, *args: Any, **rest: Any) -> tuple[Tensor]:
        out = stepped(self, *args, **rest)
        waiting.on = self.index < STEPS
        return out

    hooks = [model.register_forward_pre_hook(begin) for model in t.transformers]
    with mock.patch.object(Recorder, "step", step), waiting:
        yield waiting
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in ("flux1", "sd3-5", "wan22-5b-i2v", "ltx2-i2av") else pytest.mark.exhaustive) for n in EACH]
)
def test_a_denoising_loop_does_not_wait_for_the_device(name: str) -> None:
    """But where diffusers' own pipelines do."""
    t = tiny(name)
    with looping(t) as waiting:
        t.roll()
    files = {Path(place.partition(":")[0]) for place in waiting.places}
    assert not [file for file in files if file.is_relative_to(OURS)], waiting.places
    assert {file.name for file in files} <= KNOWN.keys(), waiting.places


def test_what_waits_is_seen() -> None:
    waiting, x = Waiting(), torch.arange(4.0)
    waiting.on = True
    with waiting:
        for wait in (lambda: x[0].item(), lambda: x[x > 1], lambda: x.nonzero(), lambda: bool(x[0] > 1), lambda: x.masked_select(x > 1)):
            waiting.places.clear()
            wait()
            assert waiting.places
        waiting.places.clear()
        x.index_select(0, torch.tensor([1]))
    assert not waiting.places


@pytest.mark.parametrize("of", [lambda times: times, lambda times: times[2:], lambda times: times.clone(), lambda times: times[2:].clone()])
def test_a_step_of_a_schedule_is_found_by_its_place_and_by_its_value(of: Any) -> None:
    times = torch.linspace(1000, 0, 12)[1:]
    for t in of(times):
        assert times[place_of(t, times)] == t
