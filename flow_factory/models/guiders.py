"""Guidance by a guider object of the pipeline (HunyuanVideo 1.5, HunyuanImage, modular pipelines), which is not an argument of its call."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flow_factory.config.block_inputs import default_blocks, of_blocks
from flow_factory.config.signature import parameters
from flow_factory.utils.errors import UserError

GUIDER = "guider_scale"
"""In a call: the scale that the pipeline's guider is to have, 1 for none; without it, the checkpoint's own."""
PARTS = ("guider", "ocr_guider", "guider_2")
"""The pipelines' names: HunyuanImage has one for quoted texts, Wan's blocks have one for the second expert."""


def guiders_of(path: str) -> list[str]:
    """The names of the guiders that the pipeline `module:Class` may have."""
    parts = default_blocks(path).expected_components if of_blocks(path) else parameters(path, "__init__")
    names = {part.name for part in parts}
    return [name for name in PARTS if name in names]


@contextmanager
def guiding(pipe: Any, scale: float | None) -> Iterator[None]:
    """The pipeline's guiders have this scale; None leaves them as they are.

    Raises:
        UserError: guidance of this kind has no scale.
    """
    if scale is None:
        yield
        return
    guiders = [guider for name in PARTS if (guider := getattr(pipe, name, None)) is not None]
    before = [dict(vars(guider)) for guider in guiders]
    try:
        for guider in guiders:
            _scale(pipe, guider, scale)
        yield
    finally:
        for guider, had in zip(guiders, before, strict=True):
            vars(guider).update({k: had[k] for k in ("_enabled", "guidance_scale") if k in had})


def _scale(pipe: Any, guider: Any, scale: float) -> None:
    if scale == 1:
        guider.disable()
        return
    if not hasattr(guider, "guidance_scale"):
        raise UserError(f"{type(pipe).__name__}: its {type(guider).__name__} has no guidance_scale; write train.kl_cfg: 1")
    guider.enable()
    guider.guidance_scale = scale - 1 if getattr(guider, "use_original_formulation", False) else scale
