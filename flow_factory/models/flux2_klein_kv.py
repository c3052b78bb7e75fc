"""FLUX.2-klein KV: an edit whose pictures are read once, in the first step, and kept as keys and values."""

from flow_factory.models.diffusers import Diffusers
from flow_factory.models.flux2 import Flux2Klein


class Flux2KleinKV(Diffusers):
    """https://huggingface.co/black-forest-labs/FLUX.2-klein-9b-kv: four steps, without guidance."""

    pipeline = "diffusers.pipelines.flux2.pipeline_flux2_klein_kv:Flux2KleinKVPipeline"
    also_loads = ("Flux2KleinPipeline",)
    encoders = ("text_encoder",)
    images = (0, 10)
    cfg = None
    published, published_config = Flux2Klein.published_as("9B")
