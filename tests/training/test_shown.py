"""What is shown goes to the main process alone, encoded, and what is scored together to the one process that scores it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image

from flow_factory.config.plan import Deal
from flow_factory.data.mp4 import save_video, video_bytes
from flow_factory.reporting.packed_media import packed
from flow_factory.reporting.pictures import animation, contact_sheet, excerpt
from flow_factory.training.run import Run
from flow_factory.types import Clip, Sample
from tests.tiny.several import several


def clip(frames: int = 6, size: tuple[int, int] = (33, 31), audio: Any = None, fps: float = 8.0) -> Clip:
    noise = np.random.default_rng(0)
    pictures = [Image.fromarray(noise.integers(0, 256, (*size[::-1], 3), np.uint8)) for _ in range(frames)]
    return Clip(pictures, fps, audio, None if audio is None else 16000)


def test_a_picture_comes_to_the_bit() -> None:
    picture = clip().frames[0]
    assert packed(picture).opened().tobytes() == picture.tobytes() and packed(picture).opened().mode == "RGB"


@pytest.mark.parametrize("frames", [1, 3, 6, 9])
def test_a_clip_comes_with_its_file_and_its_excerpt_to_the_bit(frames: int, tmp_path: Path) -> None:
    sound = np.zeros((1, 1600), np.float32)
    sent = clip(frames, audio=sound)
    came = packed(sent).opened()
    assert [f.tobytes() for f in excerpt(came).frames] == [f.tobytes() for f in excerpt(sent).frames]
    assert (came.fps, came.sample_rate, len(came.frames)) == (sent.fps, 16000, frames) and np.array_equal(came.audio, sound)
    save_video(came, tmp_path / "came.mp4")
    assert (tmp_path / "came.mp4").read_bytes() == video_bytes(came)
    assert video_bytes(came) == video_bytes(sent)
    assert [f.size for f in came.frames] == [(33, 31)] * frames == [f.size for f in came.frames[:]], "the odd side is as it was"
    near = [np.abs(np.asarray(a, float) - np.asarray(b, float)).mean() for a, b in zip(came.frames, sent.frames, strict=True)]
    assert max(near) < 60, "of noise, which no codec keeps; another frame of it would be 85 off"
    sheets = [contact_sheet([Sample("a", one, {})]).tobytes() for one in (came, sent)]
    assert sheets[0] == sheets[1] and Image.open(BytesIO(animation(came).getvalue())).n_frames == frames  # type: ignore[attr-defined]


def test_a_clip_is_encoded_the_same_on_one_core_and_on_all() -> None:
    cores = os.sched_getaffinity(0)
    on_all = video_bytes(clip(9, size=(320, 200)))
    try:
        os.sched_setaffinity(0, {min(cores)})
        assert on_all == video_bytes(clip(9, size=(320, 200)))
    finally:
        os.sched_setaffinity(0, cores)


SMOOTH = """
import hashlib
import numpy as np
from PIL import Image
from flow_factory.data.mp4 import video_bytes
from flow_factory.types import Clip

y, x = np.mgrid[:200, :320]
moving = [np.stack([3 * x + 5 * t, 2 * y + 9 * t, x + y + t], -1).astype(np.uint8) for t in range(9)]
print(hashlib.sha256(video_bytes(Clip([Image.fromarray(frame) for frame in moving], 8.0, None, None))).hexdigest())
"""


def test_the_bytes_of_a_clip_do_not_depend_on_what_was_in_memory() -> None:
    """glibc fills what it allocates by MALLOC_PERTURB_. With x264's macroblock tree, these gave four files (without B-frames two)."""
    fills = [subprocess.Popen([sys.executable, "-c", SMOOTH], stdout=subprocess.PIPE, env={**os.environ, "MALLOC_PERTURB_": fill})
             for fill in ("1", "85", "170", "250")]  # fmt: skip
    said = [fill.communicate()[0] for fill in fills]
    assert len(set(said)) == 1 and len(said[0]) == 65, said


@pytest.mark.parametrize("broken", [clip(fps=0.0), clip(audio=np.zeros((5, 10), np.float32))])
def test_a_clip_that_cannot_be_written_is_shown_by_its_excerpt(broken: Clip, caplog: pytest.LogCaptureFixture) -> None:
    came = packed(broken).opened()
    assert [f.tobytes() for f in came.frames] == [f.tobytes() for f in excerpt(broken).frames] and type(came) is Clip
    assert "a clip is shown by 4 of its frames, because it cannot be written: " in caplog.text


@pytest.mark.parametrize("deal", [Deal(6, 1, 3, True), Deal(2, 2, 4, False), Deal(3, 4, 2, False), Deal(5, 3, 6, False, 2)])
def test_those_who_hold_a_group_are_those_who_take_its_micro_batches(deal: Deal) -> None:
    for group in range(deal.groups):
        assert deal.holders(group) == [p for p in range(deal.processes) if deal.leads(p) and group in {g for g, _ in deal.of(p)}]


# -- who gets what ------------------------------------------------------------------------------------------------------------------


@contextmanager
def received() -> Iterator[list[bytes]]:
    """Gathers all that this process is sent while inside, whatever the call: object collectives end in these."""
    got: list[bytes] = []

    def note(tensors: Any) -> None:
        got.extend(t.detach().reshape(-1).view(torch.uint8).numpy().tobytes() for t in tensors)

    def wrapped(name: str, call: Any) -> Any:
        def answer(first: Any, *rest: Any, **named: Any) -> Any:
            work = call(first, *rest, **named)
            if name == "irecv":
                arrivals.append((work, first))
            else:
                note(first if isinstance(first, list) else [first])
            return work

        return answer

    names = ("all_gather", "all_reduce", "broadcast", "all_gather_into_tensor", "irecv", "recv")
    arrivals: list[Any] = []
    places = [(module, n) for module in (dist, dist.distributed_c10d) for n in names if hasattr(module, n)]
    before = [getattr(module, n) for module, n in places]
    for (module, n), call in zip(places, before, strict=True):
        setattr(module, n, wrapped(n, call))
    try:
        yield got
    finally:
        for (module, n), call in zip(places, before, strict=True):
            setattr(module, n, call)
        note([tensor for _, tensor in arrivals])


def says_what_it_got(run: Run) -> dict[str, Any]:
    """An evaluation, and an epoch in which a reward compares whole groups."""
    assert run.evaluators
    with received() as got:
        _, samples = run.evaluators[0].run()
    with received() as epochs:
        run.trainer.epoch()
    return {
        "bytes": sum(map(len, got)), "pngs": sum(b.count(b"\x89PNG") for b in got), "pictures": sum(b"PIL.Image" in b for b in got),
        "shown": [s.prompt for s in samples], "modes": sorted({s.media.size for s in samples}),
        "raw": sum(b"PIL.Image" in b for b in epochs), "train": len(run.trainer.shown),
    }  # fmt: skip


GROUPWISE = ("rewards.reward_model=tests.tiny.rewards.Outshines", "eval.group_size=4", "train.unique_sample_num_per_epoch=1")


@pytest.mark.exhaustive
def test_no_other_process_gets_a_picture(tmp_path: Path) -> None:
    """A group of four, whose micro-batches of one are with both processes, is scored by the first."""
    keys = (*GROUPWISE, "train.per_device_batch_size=1", "train.gradient_step_per_epoch=1", "eval.resolution=64")
    said = several(tmp_path, 2, {"shown": keys, "none": (*keys, "log.num_samples=0")}, says_what_it_got)
    (main, other), (_, without) = said["shown"], said["none"]
    assert main["pngs"] == 2 and main["pictures"] == 0, "of four rows, two are the main process's own"
    assert len(main["shown"]) == 4 and main["modes"] == [[64, 64]] and main["train"] == 2
    assert other["pngs"] == other["pictures"] == other["train"] == 0 and other["shown"] == []
    assert other["bytes"] == without["bytes"], "not a byte more than where nothing is shown"
    assert (main["raw"], other["raw"]) == (1, 0), "pictures that are scored together go to the one that scores them"
