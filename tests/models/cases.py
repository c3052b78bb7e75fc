"""Every family and every way to call it, as one table; the rows of a tiny data set for each."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flow_factory.data.mp4 import save_video
from flow_factory.types import Clip, Row
from tests.tiny.pipelines import SMALL

Size = tuple[int, int]


@dataclass(frozen=True)
class Case:
    """A checkpoint and a way to call it."""

    checkpoint: str
    model_type: str
    call: Mapping[str, Any] = field(default_factory=dict)
    """What a config says beside `SMALL`."""
    stock: Mapping[str, Any] = field(default_factory=dict)
    """What the pipeline's own call has beside or instead of it; None: it takes no such argument."""
    off: Mapping[str, Any] = field(default_factory=dict)
    """Call arguments that turn guidance off; none: nothing does."""
    forwards: tuple[int, ...] = (1,)
    """Forwards of a step: how often each has every sample in its batch."""
    images: tuple[Size, ...] = ()
    """Width and height of the condition images of the first row; the second row's are `OTHER`."""
    frames: int = 0
    """Of the condition video."""
    negative: bool = False
    """Whether the pipeline's call has a negative prompt."""
    first: int = 0
    """Where in the schedule of `STEPS` it starts."""
    slicing: bool = False
    """Whether its VAE can decode one sample at a time only."""

    @property
    def guided(self) -> bool:
        return sum(self.forwards) > 1


OTHER: Size = (96, 80)
SQUARE: Size = (64, 64)
OURS = {"condition_image_size": None}
REDUCED: Mapping[tuple[int, Size], Size] = {(32, SQUARE): (32, 32), (32, OTHER): (35, 29), (72, OTHER): (79, 66)}
"""What becomes of pictures that have more than the square of `condition_image_size` pixels, where we and not the pipeline see to that."""
CFG = {"call": {"guidance_scale": 4.0}, "off": {"guidance_scale": 1.0}, "negative": True}
TWICE: dict[str, Any] = CFG | {"forwards": (1, 1)}
DOUBLE: dict[str, Any] = CFG | {"forwards": (2,)}
QWEN: dict[str, Any] = TWICE | {"stock": {"guidance_scale": None, "true_cfg_scale": 4.0, "negative_prompt": " "}}
EDIT: dict[str, Any] = QWEN | {
    "call": {"guidance_scale": 4.0, "condition_image_size": 64}, "stock": QWEN["stock"] | OURS,
}  # fmt: skip
LTX2: dict[str, Any] = {
    "call": {"guidance_scale": 4.0},
    "off": {"guidance_scale": 1.0, "audio_guidance_scale": 1.0} | dict.fromkeys(("stg_scale", "audio_stg_scale"), 0.0)
    | dict.fromkeys(("modality_scale", "audio_modality_scale"), 1.0),
    "forwards": (2, 1, 1), "negative": True,
}  # fmt: skip
"""Its guidance is one forward of the double batch, then one each for what is blurred in space and time and for the modalities alone."""

CASES: dict[str, Case] = {
    "flux1": Case("flux1", "flux1"),
    "flux1-true-cfg": Case("flux1", "flux1", {"true_cfg_scale": 4.0}, {"negative_prompt": ""}, {"true_cfg_scale": 1.0}, (1, 1),
                           negative=True),
    "flux1-kontext": Case("flux1_kontext", "flux1-kontext", {"condition_image_size": 32}, OURS, images=(SQUARE,)),
    "flux2": Case("flux2", "flux2"),
    "flux2-two-images": Case("flux2", "flux2", {"condition_image_size": 72}, OURS, images=(SQUARE, OTHER)),
    "flux2-klein": Case("flux2_klein", "flux2-klein"),
    "flux2-klein-base": Case("flux2_klein_base", "flux2-klein", **TWICE | {"negative": False}),
    "flux2-klein-base-image": Case("flux2_klein_base", "flux2-klein", images=(SQUARE,), **TWICE | {"negative": False}),
    "z-image": Case("z_image", "z-image", **DOUBLE | {"off": {"guidance_scale": 0.0}}),
    "z-image-turbo": Case("z_image", "z-image", {"guidance_scale": 0.0}),
    "qwen-image": Case("qwen_image", "qwen-image", **QWEN),
    "qwen-image-edit": Case("qwen_image_edit_plus", "qwen-image-edit-plus", images=(SQUARE,), **EDIT),
    "qwen-image-edit-two-images": Case("qwen_image_edit_plus", "qwen-image-edit-plus", images=(SQUARE, OTHER), **EDIT),
    "qwen-image-edit-2511": Case("qwen_image_edit_2511", "qwen-image-edit-plus", images=(SQUARE,), **EDIT),
    "sd3-5": Case("sd3", "sd3-5", **DOUBLE),
    "wan21-t2v": Case("wan21_t2v", "wan2_t2v", **TWICE),
    "wan22-a14b-t2v": Case("wan22_a14b_t2v", "wan2_t2v", **TWICE | {"call": {"guidance_scale": 4.0, "guidance_scale_2": 3.0}}),
    "wan22-5b-t2v": Case("wan22_5b_t2v", "wan2_t2v", **TWICE),
    "wan21-i2v": Case("wan21_i2v", "wan2_i2v", images=(SQUARE,), **TWICE),
    "wan21-first-and-last": Case("wan21_flf2v", "wan2_i2v", images=(SQUARE, OTHER), **TWICE),
    "wan22-a14b-i2v": Case("wan22_a14b_i2v", "wan2_i2v", images=(SQUARE,), **TWICE),
    "wan22-a14b-first-and-last": Case("wan22_a14b_i2v", "wan2_i2v", images=(SQUARE, OTHER), **TWICE),
    "wan22-5b-i2v": Case("wan22_5b_i2v", "wan2_i2v", images=(SQUARE,), **TWICE),
    "wan21-v2v": Case("wan21_v2v", "wan2_v2v", **TWICE | {"call": {"guidance_scale": 4.0, "strength": 0.8}}, frames=5, first=1),
    "ltx2-t2av": Case("ltx2_t2av", "ltx2_t2av", **LTX2),
    "ltx2-i2av": Case("ltx2_i2av", "ltx2_i2av", images=(SQUARE,), **LTX2 | {"call": {"guidance_scale": 4.0, "image_crf": 20}}),
    "chroma": Case("chroma", "diffusers", **TWICE),
    "sana": Case("sana", "diffusers", **DOUBLE),
    "lumina2": Case("lumina2", "diffusers", **TWICE),
    "cogview4": Case("cogview4", "diffusers", **TWICE),
    "hidream": Case("hidream", "diffusers", **DOUBLE),
    "hunyuan_video15": Case("hunyuan_video15", "diffusers", stock={"guidance_scale": None}, forwards=(1, 1), negative=True, slicing=True),
}  # fmt: skip

EACH = list({case.checkpoint: name for name, case in reversed(CASES.items())}.values())[::-1]
"""One case of every checkpoint, the first."""
RARE = ("sana", "lumina2", "cogview4", "hidream", "hunyuan_video15")


def over(names: Iterable[str]) -> pytest.MarkDecorator:
    """A test for each of these cases; for the rare ones, which have no adapter of their own, a slow one."""
    return pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in RARE else n for n in names])


every_case, every_checkpoint = over(CASES), over(EACH)


@lru_cache
def _folder() -> TemporaryDirectory:
    return TemporaryDirectory(prefix="tiny_conditions_")


def picture(size: Size, seed: int) -> Path:
    """A file of blurred noise."""
    path = Path(_folder().name) / f"{size[0]}x{size[1]}_{seed}.png"
    if not path.exists():
        _noise(1, size, seed)[0].save(path)
    return path


def video(frames: int, seed: int) -> Path:
    path = Path(_folder().name) / f"{frames}_{seed}.mp4"
    if not path.exists():
        save_video(Clip(_noise(frames, (16, 16), seed), 16), path)
    return path


def _noise(frames: int, size: Size, seed: int) -> list[Image.Image]:
    noise = np.random.default_rng(seed).integers(0, 256, (frames, 4, 4, 3), np.uint8)
    return [Image.fromarray(frame).resize(size) for frame in noise]


def call_of(case: Case) -> dict[str, Any]:
    """A config's call arguments."""
    return {"guidance_scale": 3.5, **SMALL[case.checkpoint], **case.call}


def row(case: Case, k: int = 0) -> Row:
    """The first row has a negative prompt, the second one pictures of another size."""
    sizes = [OTHER] * len(case.images) if k else case.images
    images = tuple(str(picture(size, 10 * k + i)) for i, size in enumerate(sizes))
    videos = (str(video(case.frames, k)),) if case.frames else ()
    prompt = ("a red circle on the hill", "two blue squares and a dog")[k]
    return Row(k, prompt, None if k or not case.negative else "low quality", images=images, videos=videos, source=f"train.jsonl:{k + 1}")
