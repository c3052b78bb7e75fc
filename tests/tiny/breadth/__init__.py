"""Tiny random checkpoints of the flow-matching pipelines of diffusers that have no adapter of their own: `CASES`, by kind."""

from tests.tiny.breadth import cosmos, flux_sd3, glm_image, images_more, images_t2i, kandinsky, ltx, modular, qwen, videos, wan_kin, z_image
from tests.tiny.breadth.registry import CASES as CASES
from tests.tiny.breadth.registry import Case as Case

__all__ = [
    "CASES",
    "Case",
    "cosmos",
    "flux_sd3",
    "glm_image",
    "images_more",
    "images_t2i",
    "kandinsky",
    "ltx",
    "modular",
    "qwen",
    "videos",
    "wan_kin",
    "z_image",
]
