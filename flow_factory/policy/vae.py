"""How the VAE decodes: a batch at once, image by image, or in tiles."""

from typing import Any

from flow_factory.config import ModelConfig
from flow_factory.utils.errors import UserError

DECODING = {"vae_slicing": "enable_slicing", "vae_tiling": "enable_tiling"}
"""Keys of `model`, and the method of a VAE that each stands for."""


def able(vae: Any, config: ModelConfig, asked: ModelConfig) -> tuple[bool, ...]:
    """The keys of `DECODING`, without what `auto` has chosen and this VAE cannot; what the user has asked for stays, and is refused."""
    return tuple(getattr(config, key) is True and (getattr(asked, key) is True or hasattr(vae, how)) for key, how in DECODING.items())


def set_vae(vae: Any, config: ModelConfig) -> None:
    """Decoding (and encoding) picture by picture, or tile by tile: less memory, more time.

    Raises:
        UserError: this VAE cannot.
    """
    for key, method in DECODING.items():
        if getattr(config, key) is not True:  # nor an `auto` that nobody has settled
            continue
        if not hasattr(vae, method):
            raise UserError(f"model.{key}: {type(vae).__name__} has no {method}; write false")
        getattr(vae, method)()
