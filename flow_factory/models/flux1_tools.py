"""FLUX.1 Fill (a masked part of a picture is drawn anew) and Control (a picture drawn after edges or depth)."""

from flow_factory.models.flux1 import Flux1
from flow_factory.models.named import Named


class Flux1Fill(Named):
    """https://huggingface.co/black-forest-labs/FLUX.1-Fill-dev, under the FLUX.1 [dev] Non-Commercial License."""

    pipeline = "diffusers.pipelines.flux.pipeline_flux_fill:FluxFillPipeline"
    encoders = Flux1.encoders
    images = (1, 1)
    needs = ("mask_image",)
    cfg = None
    published = Flux1.published
    published_config = {"in_channels": 384, "out_channels": 64, "guidance_embeds": True}


class Flux1Control(Named):
    """https://huggingface.co/black-forest-labs/FLUX.1-Canny-dev and FLUX.1-Depth-dev, under the FLUX.1 [dev] Non-Commercial License."""

    pipeline = "diffusers.pipelines.flux.pipeline_flux_control:FluxControlPipeline"
    encoders = Flux1.encoders
    needs = ("control_image",)
    cfg = None
    published = Flux1.published
    published_config = {"in_channels": 128, "out_channels": 64, "guidance_embeds": True}
