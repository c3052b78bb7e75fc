"""Pictures are made one micro-batch late, and are the ones that the stock processor makes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.video_processor import VideoProcessor

from flow_factory.core.readback import Deferred, Readback
from tests.tiny.run import tiny


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_pictures_are_those_of_the_processor_itself(dtype: torch.dtype) -> None:
    pixels = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(0)).to(dtype)
    stock = VaeImageProcessor()
    later = Readback(stock).postprocess(pixels, output_type="pil")
    assert isinstance(later, Deferred)
    assert [p.tobytes() for p in later] == [p.tobytes() for p in stock.postprocess(pixels, output_type="pil")]
    video, films = pixels[None].transpose(1, 2), VideoProcessor()
    shown = Readback(films).postprocess_video(video=video, output_type="pil")
    assert [p.tobytes() for p in shown[0]] == [p.tobytes() for p in films.postprocess_video(video, output_type="pil")[0]]


def test_what_is_no_picture_is_there_at_once() -> None:
    pixels = torch.zeros(1, 3, 8, 8)
    for kind in ("pt", "np", "latent"):
        assert not isinstance(Readback(VaeImageProcessor()).postprocess(pixels, output_type=kind), Deferred)


def test_a_deferred_list_is_made_once() -> None:
    made: list[int] = []

    def make() -> list[int]:
        made.append(1)
        return [4, 5, 6]

    later = Deferred(make)
    assert not made
    assert (later[1], later[1:], len(later), list(later), made) == (5, [5, 6], 3, [4, 5, 6], [1])


def test_a_rollout_makes_its_pictures_while_the_next_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny(tmp_path)
    order: list[str] = []
    draw, make = run.trainer.collector.sample, VaeImageProcessor.postprocess

    def sample(group: Any, members: Sequence[int], epoch: int) -> Any:
        order.append("draw")
        return draw(group, members, epoch)

    def postprocess(self: Any, *args: Any, **named: Any) -> Any:
        order.append("make")
        return make(self, *args, **named)

    monkeypatch.setattr(run.trainer.collector, "sample", sample)
    monkeypatch.setattr(VaeImageProcessor, "postprocess", postprocess)
    run.trainer.collector.behind = 1  # as on a GPU
    rollouts = run.trainer.collector(0)
    assert order == ["draw", "draw", "make", "draw", "make", "draw", "make", "make"]
    assert all(type(r.media) is list for r in rollouts)
    assert type(run.context.adapter.pipe.image_processor) is VaeImageProcessor, "an evaluation's is the stock one"
