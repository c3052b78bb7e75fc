"""Given media become the states that the stock pipelines decode to them; and families that take a time for each sample."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from flow_factory.core.randomness import generator
from flow_factory.models import MODELS
from flow_factory.models.base import ModelAdapter
from flow_factory.types import Clip
from flow_factory.utils.errors import UserError
from tests.conftest import STEPS
from tests.models.cases import CASES, EACH, row
from tests.models.harness import Tiny, small, tiny

OWN = [name for name in EACH if CASES[name].model_type != "diffusers"]
ENCODED = [name for name in OWN if not name.startswith("ltx2")]
SEEDS = (1, 2)


def uncommon(vae: Any) -> None:
    """A channel's mean and deviation are not 0 and 1, as they are in some tiny VAEs."""
    config = vae.config
    if "latents_mean" in config and "shift_factor" not in config:
        spread = torch.linspace(0.5, 1.5, config.z_dim).tolist()
        vae.register_to_config(latents_mean=[0.3 - x for x in spread], latents_std=spread)
    if hasattr(vae, "bn"):
        vae.bn.running_mean.copy_(torch.linspace(-0.5, 0.7, len(vae.bn.running_mean)))
        vae.bn.running_var.copy_(torch.linspace(0.4, 2.0, len(vae.bn.running_var)))


@lru_cache
def ready(name: str, dtype: str = "fp32") -> Tiny:
    t = Tiny(name, dtype)
    uncommon(t.adapter.pipe.vae)
    return t


def noise(t: Tiny, seed: int, **call: int) -> Image.Image | Clip:
    """What the pipeline makes at this size, blurred noise; a clip that begins with the row's picture."""
    asked = t.call | call
    size, frames = (asked["width"], asked["height"]), asked.get("num_frames", t.case.frames)
    blurred = np.random.default_rng(seed).integers(0, 256, (frames or 1, 4, 4, 3), np.uint8)
    pictures = [Image.fromarray(frame).resize(size) for frame in blurred]
    if not frames:
        return pictures[0]
    first = [Image.open(path).resize(size, Image.Resampling.LANCZOS) for path in row(t.case).images[:1]]
    return Clip(first + pictures[len(first) :], 16)


def modes(t: Tiny, media: Sequence[Any]) -> Tensor:
    """Of the VAE's distributions, in the VAE's layout."""
    vae, arrays = t.adapter.pipe.vae, [np.stack(list(map(np.asarray, one.frames if isinstance(one, Clip) else [one]))) for one in media]
    frames = torch.tensor(np.stack(arrays)).permute(0, 4, 1, 2, 3) / 127.5 - 1
    with torch.no_grad():
        return vae.encode(frames if hasattr(vae, "temperal_downsample") else frames[:, :, 0]).latent_dist.mode()


@contextmanager
def decoded(pipe: Any) -> Iterator[list[Tensor]]:
    """What its VAE is given to decode."""
    seen: list[Tensor] = []
    decode = pipe.vae.decode

    def spy(z: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(z)
        return decode(z, *args, **kwargs)

    with mock.patch.object(pipe.vae, "decode", spy):
        yield seen


def drawn_to(t: Tiny, state: Tensor) -> tuple[Tensor, Any]:
    """What a rollout decodes whose last step returns this state, and its media."""

    def draw(index: int, t_: Tensor, x: Tensor, *_: Any) -> tuple[Tensor, None]:
        assert state.shape == x.shape and state.dtype == x.dtype
        return (state if index == STEPS - 1 else x), None

    with small(t.adapter.pipe), decoded(t.adapter.pipe) as seen:
        media, recorder = t.adapter.sample(t.conds[0], t.call, STEPS, draw, [generator(0, "init", i) for i in range(len(state))])
    assert recorder.last is not None and torch.equal(recorder.last, state)
    return torch.cat(seen), media


# -- states -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ENCODED)
def test_a_pipeline_whose_last_step_returns_the_state_of_media_decodes_their_latents(name: str) -> None:
    t = ready(name)
    media = [noise(t, seed) for seed in SEEDS]
    state, expected = t.adapter.to_state(media, t.call), modes(t, media)
    assert expected.std() > 1e-3 and not torch.allclose(expected[0], expected[1], rtol=1e-2)
    seen, _ = drawn_to(t, state)
    assert torch.allclose(seen, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ENCODED)
def test_a_state_has_the_shape_and_dtype_of_a_rollouts_last_and_is_that_of_the_sample_alone(name: str) -> None:
    t = ready(name)
    media = [noise(t, seed) for seed in SEEDS]
    state, last = t.adapter.to_state(media, t.call), t.roll(noisy=())[1].last
    assert last is not None and state.shape == last.shape and state.dtype == last.dtype == torch.float32
    assert torch.equal(state[1:], t.adapter.to_state(media[1:], t.call)) and not state.requires_grad


@pytest.mark.parametrize("name", ["flux1", "flux2", "qwen-image", "wan21-t2v"])
def test_a_vae_in_16_bits_encodes_to_float32_states(name: str) -> None:
    t, exact = ready(name, "bf16"), ready(name)
    media = [noise(t, 1)]
    states = [each.adapter.to_state(media, t.call) for each in (t, exact)]
    assert states[0].dtype == torch.float32
    assert (states[0] - states[1]).norm() < 0.1 * states[1].norm()


def test_pictures_need_not_be_square_nor_of_three_channels() -> None:
    t = ready("flux1")
    wide = noise(t, 1, width=64)
    assert isinstance(wide, Image.Image)
    states = [t.adapter.to_state([picture], t.call | {"width": 64}) for picture in (wide, wide.convert("RGBA"))]
    assert states[0].shape == (1, 8, 16) and torch.equal(*states)


# -- refusals ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["flux1", "flux2", "sd3-5", "wan21-t2v", "wan21-v2v"])
def test_media_of_another_size_are_refused(name: str) -> None:
    t = tiny(name)
    height, width = t.call["height"], t.call["width"]
    wrong = f"sample 1 has height {height}, width {2 * width}, where height {height}, width {width} is drawn"
    with pytest.raises(UserError, match=wrong):
        t.adapter.to_state([noise(t, 1), noise(t, 2, width=2 * width)], t.call)
    with pytest.raises(UserError, match=f"height {height}, width {width - 1}: .* makes multiples of"):
        t.adapter.to_state([noise(t, 1, width=width - 1)], t.call | {"width": width - 1})


@pytest.mark.parametrize(("name", "frames", "reason"), [
    ("wan21-t2v", 9, "sample 0 is a clip of 9 frames, where a clip of num_frames 5 is drawn"),
    ("wan21-i2v", 1, "sample 0 is a clip of 1 frames, where a clip of num_frames 5 is drawn"),
    ("wan21-v2v", 4, "num_frames 4: WanVideoToVideoPipeline makes a multiple of 4, plus 1; write 1 or 5"),
])  # fmt: skip
def test_clips_of_another_length_are_refused(name: str, frames: int, reason: str) -> None:
    t = tiny(name)
    with pytest.raises(UserError, match=reason):
        t.adapter.to_state([noise(t, 1, num_frames=frames)], t.call)


def test_clips_are_as_long_as_the_pipelines_default_where_no_number_is_given() -> None:
    t = tiny("wan21-t2v")
    call = {k: v for k, v in t.call.items() if k != "num_frames"}
    with pytest.raises(UserError, match="sample 0 is a clip of 5 frames, where a clip of num_frames 81 is drawn"):
        t.adapter.to_state([noise(t, 1)], call)


def test_clips_for_a_row_with_a_video_have_one_length() -> None:
    t = tiny("wan21-v2v")
    nine = t.adapter.to_state([noise(t, 1, num_frames=9)], t.call)
    assert nine.shape[2] == 3
    with pytest.raises(UserError, match="sample 1 is a clip of 9 frames, where a clip of num_frames 5 is drawn"):
        t.adapter.to_state([noise(t, 1), noise(t, 1, num_frames=9)], t.call)


def test_a_picture_where_a_clip_is_drawn_and_a_clip_where_a_picture_is_are_refused() -> None:
    wan, flux = tiny("wan21-t2v"), tiny("flux1")
    picture, clip = noise(flux, 1), noise(wan, 1)
    with pytest.raises(UserError, match="sample 0 is a picture, where a clip of num_frames 5 is drawn"):
        wan.adapter.to_state([picture], wan.call)
    with pytest.raises(UserError, match="sample 1 is a clip of 5 frames, where a picture is drawn"):
        flux.adapter.to_state([picture, clip], flux.call)


@pytest.mark.parametrize("name", ["ltx2-t2av", "ltx2-i2av", "chroma"])
def test_families_that_cannot_encode_media_say_why(name: str) -> None:
    """The class says it too, before a model is loaded."""
    t, case = tiny(name), CASES[name]
    reason = MODELS[case.model_type].encodes_media
    assert reason is not None
    with pytest.raises(UserError, match=f"{type(t.adapter.pipe).__name__}: media cannot be encoded: {reason}"):
        t.adapter.to_state([noise(t, 1)], t.call)


def test_every_family_is_known_to_encode_media_or_not_to() -> None:
    can = {case.model_type for case in CASES.values() if MODELS[case.model_type].encodes_media is None}
    assert can == {CASES[name].model_type for name in ENCODED}
    assert ModelAdapter.encodes_media == "its adapter does not define it"


# -- a time for each sample -------------------------------------------------------------------------------------------------------

PER_SAMPLE = [name for name, case in CASES.items() if MODELS[case.model_type].times_per_sample]


@pytest.mark.parametrize("name", PER_SAMPLE)
def test_without_guidance_samples_may_have_a_time_each(name: str) -> None:
    """One velocity call at three times is three calls; and the times matter."""
    t = Tiny(name, **CASES[name].off) if CASES[name].off else tiny(name)
    x, s = t.roll(noisy=(), ids=range(3))[1].last, torch.tensor([0.9, 0.5, 0.2])
    assert x is not None
    with small(t.adapter.pipe), torch.no_grad():
        together = t.adapter.velocity(x, 1000 * s, s, t.conds[0], t.call)
        apart, turned = (
            torch.cat([t.adapter.velocity(x[k : k + 1], 1000 * times[k], times[k], t.conds[0], t.call) for k in range(3)])
            for times in (s, s.roll(1))
        )
    assert torch.allclose(together, apart, rtol=1e-4, atol=1e-5)
    assert all((a - b).abs().max() > 0.01 for a, b in zip(apart, turned, strict=True))


def test_the_families_that_take_a_time_for_each_sample() -> None:
    """The others cat or compare their times (Wan, LTX-2), or are not known before they are loaded."""
    assert {CASES[name].model_type for name in PER_SAMPLE} == {
        "flux1", "flux1-kontext", "flux2", "flux2-klein", "qwen-image", "qwen-image-edit-plus", "sd3-5", "z-image",
    }  # fmt: skip
