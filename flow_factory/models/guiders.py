"""Guidance by a guider object of the pipeline (HunyuanVideo 1.5, HunyuanImage), which is not an argument of its call."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flow_factory.utils.errors import UserError

GUIDER = "guider_scale"
"""In a call: the scale that the pipeline's guider is to have, 1 for none; without it, the checkpoint's own."""


@contextmanager
def guiding(pipe: Any, scale: float | None) -> Iterator[None]:
    """The pipeline's guider has this scale; None leaves it as it is.

    Raises:
        UserError: guidance of this kind has no scale.
    """
    if scale is None:
        yield
        return
    guiders = [g for g in (pipe.guider, getattr(pipe, "ocr_guider", None)) if g is not None]  # HunyuanImage has one for quoted texts
    before = [dict(vars(guider)) for guider in guiders]
    for guider in guiders:
        if scale != 1 and not hasattr(guider, "guidance_scale"):
            raise UserError(f"{type(pipe).__name__}: its {type(guider).__name__} has no guidance_scale; write train.kl_cfg: 1")
        if scale == 1:
            guider.disable()
        else:
            guider.enable()
            guider.guidance_scale = scale - 1 if getattr(guider, "use_original_formulation", False) else scale
    try:
        yield
    finally:
        for guider, its in zip(guiders, before, strict=True):
            vars(guider).update({k: its[k] for k in ("_enabled", "guidance_scale") if k in its})
