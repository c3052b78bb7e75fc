"""The generic adapter as a family of its own: what is known of a pipeline beforehand, without code for it."""

from flow_factory.models.diffusers import Diffusers


class Named(Diffusers):
    """A subclass says its pipeline, the media of a row, what guidance is called, and the sizes of the published checkpoints."""

    images = (0, 0)
    videos = (0, 0)
