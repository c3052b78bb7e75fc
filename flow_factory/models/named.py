"""The generic adapter as a family of its own: what is known of a pipeline beforehand, without code for it."""

from collections.abc import Mapping
from typing import Any

from flow_factory.models.diffusers import Diffusers
from flow_factory.models.family import text_values


class Named(Diffusers):
    """A subclass says its pipeline, the media of a row, what guidance is called, and the sizes of the published checkpoints."""

    images = (0, 0)
    videos = (0, 0)

    @classmethod
    def embedded(cls, shape: Mapping[str, Any], tokens: int) -> int:
        return text_values(shape, tokens)
