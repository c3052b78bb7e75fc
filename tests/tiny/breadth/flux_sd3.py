"""FLUX.1 and Stable Diffusion 3 with conditions."""

from functools import partial
from typing import Any

import diffusers as d

from tests.tiny import image_pipelines as images
from tests.tiny.breadth.components import kl_vae16
from tests.tiny.breadth.registry import CONTROL, IMAGE, INPAINT, PICTURE, Medium, case, made, reuse
from tests.tiny.flux import flux_pipeline
from tests.tiny.parts import lively, seeded

reuse("flux_img2img", "FluxImg2ImgPipeline", flux_pipeline, columns=PICTURE)
reuse(
    "flux_inpaint",
    "FluxInpaintPipeline",
    flux_pipeline,
    columns=INPAINT,
)
reuse(
    "flux_kontext_inpaint",
    "FluxKontextInpaintPipeline",
    flux_pipeline,
    columns=INPAINT,
    call={**IMAGE, "max_area": 1024, "_auto_resize": False},
)
reuse(
    "flux_fill",
    "FluxFillPipeline",
    partial(flux_pipeline, transformer={"in_channels": 288, "out_channels": 16}),
    columns=INPAINT,
)
reuse("flux_control", "FluxControlPipeline", partial(flux_pipeline, transformer={"in_channels": 32, "out_channels": 16}), columns=CONTROL)
reuse(
    "flux_control_img2img",
    "FluxControlImg2ImgPipeline",
    partial(flux_pipeline, transformer={"in_channels": 32, "out_channels": 16}),
    columns=PICTURE | CONTROL,
)


def _flux_controlnet() -> Any:
    net = seeded(
        d.FluxControlNetModel,
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
    )
    return lively(net)


@case("flux_controlnet", "FluxControlNetPipeline", columns=CONTROL)
def flux_controlnet() -> Any:
    return made("FluxControlNetPipeline", flux_pipeline, controlnet=_flux_controlnet())


@case("flux_controlnet_img2img", "FluxControlNetImg2ImgPipeline", columns=PICTURE | CONTROL)
def flux_controlnet_img2img() -> Any:
    return made("FluxControlNetImg2ImgPipeline", flux_pipeline, controlnet=_flux_controlnet())


def sd3_wide() -> Any:
    """16 latent channels, as its inpainting asks for."""
    transformer = seeded(
        d.SD3Transformer2DModel, sample_size=32, patch_size=2, in_channels=16, num_layers=2, attention_head_dim=8, num_attention_heads=4,
        caption_projection_dim=32, joint_attention_dim=64, pooled_projection_dim=64, out_channels=16, pos_embed_max_size=32)  # fmt: skip
    return d.StableDiffusion3Pipeline(**images.sd3().components | {"transformer": transformer, "vae": kl_vae16()})


reuse("sd3_img2img", "StableDiffusion3Img2ImgPipeline", images.sd3, columns=PICTURE)
reuse(
    "sd3_inpaint",
    "StableDiffusion3InpaintPipeline",
    lambda: sd3_wide(),
    columns=INPAINT,
)
reuse("sd3_pag", "StableDiffusion3PAGPipeline", images.sd3)


def _sd3_controlnet(**kwargs: Any) -> Any:
    return lively(seeded(
        d.SD3ControlNetModel, sample_size=32, patch_size=2, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=4,
        joint_attention_dim=64, caption_projection_dim=32, pooled_projection_dim=64, out_channels=4, pos_embed_max_size=32,
        **kwargs))  # fmt: skip


@case("sd3_controlnet", "StableDiffusion3ControlNetPipeline", columns=CONTROL)
def sd3_controlnet() -> Any:
    return made("StableDiffusion3ControlNetPipeline", images.sd3, controlnet=_sd3_controlnet())


reuse(
    "flux_control_inpaint",
    "FluxControlInpaintPipeline",
    partial(flux_pipeline, transformer={"in_channels": 32, "out_channels": 16}),
    columns=INPAINT | CONTROL,
)


@case("flux_controlnet_inpaint", "FluxControlNetInpaintPipeline", columns=INPAINT | CONTROL)
def flux_controlnet_inpaint() -> Any:
    return made("FluxControlNetInpaintPipeline", flux_pipeline, controlnet=_flux_controlnet())


reuse("sd3_pag_img2img", "StableDiffusion3PAGImg2ImgPipeline", images.sd3, columns=PICTURE, negative=True)


@case("sd3_controlnet_inpaint", "StableDiffusion3ControlNetInpaintingPipeline", columns=CONTROL | {"control_mask": Medium("mask")})
def sd3_controlnet_inpaint() -> Any:
    return made("StableDiffusion3ControlNetInpaintingPipeline", images.sd3, controlnet=_sd3_controlnet(extra_conditioning_channels=1))


reuse("visualcloze", "VisualClozeGenerationPipeline", partial(flux_pipeline, transformer={"in_channels": 320, "out_channels": 16}))
