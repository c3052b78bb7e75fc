"""The decoding of the VAE: a batch at once, image by image, or in tiles."""

from typing import Any

from flow_factory.config import ModelConfig
from flow_factory.utils.errors import UserError

DECODING = {"vae_slicing": "enable_slicing", "vae_tiling": "enable_tiling"}
"""Keys of `model`, and the method of a VAE that each one calls."""


def able(vae: Any, config: ModelConfig, given: ModelConfig) -> tuple[bool, ...]:
    """The values of the keys of `DECODING`. A choice of `auto` that this VAE does not support becomes False; a user's choice is kept."""
    return tuple(getattr(config, key) is True and (getattr(given, key) is True or hasattr(vae, how)) for key, how in DECODING.items())


def set_vae(vae: Any, config: ModelConfig) -> None:
    """Makes the VAE decode and encode image by image, or tile by tile, with less memory and more time.

    Raises:
        UserError: this VAE does not support it.
    """
    for key, method in DECODING.items():
        if getattr(config, key) is not True:  # an undecided `auto` is skipped too
            continue
        if not hasattr(vae, method):
            raise UserError(f"model.{key}: {type(vae).__name__} has no {method}; write false")
        getattr(vae, method)()
