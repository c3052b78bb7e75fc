"""Z-Image, Chroma, FLUX.2 klein and CogView 4 with conditions."""

from functools import partial
from typing import Any

import diffusers as d
import transformers

from tests.tiny import generic_pipelines as generic
from tests.tiny import image_pipelines as images
from tests.tiny.breadth.registry import CONTROL, IMAGE, INPAINT, PICTURE, Medium, case, made, reuse
from tests.tiny.encoders import WIDTH, image_processor
from tests.tiny.parts import lively, seeded

reuse("z_image_img2img", "ZImageImg2ImgPipeline", images.z_image, columns=PICTURE, negative=True)
reuse(
    "z_image_inpaint",
    "ZImageInpaintPipeline",
    images.z_image,
    columns=INPAINT,
)
reuse("chroma_img2img", "ChromaImg2ImgPipeline", generic.chroma, columns=PICTURE, negative=True)
reuse("chroma_inpaint", "ChromaInpaintPipeline", generic.chroma, columns=INPAINT, negative=True)
reuse("flux2_klein_kv", "Flux2KleinKVPipeline", images.flux2_klein, columns={"image": Medium(side=64)})
reuse("flux2_klein_kv_text", "Flux2KleinKVPipeline", images.flux2_klein)
reuse(
    "flux2_klein_inpaint",
    "Flux2KleinInpaintPipeline",
    partial(images.flux2_klein, is_distilled=False),
    columns={"image": Medium(side=64), "mask_image": Medium("mask", 64)},
    call={**IMAGE, "height": 64, "width": 64},
)


@case("cogview4_control", "CogView4ControlPipeline", columns=CONTROL, negative=True)
def cogview4_control() -> Any:
    transformer = seeded(
        d.CogView4Transformer2DModel, in_channels=8, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4,
        text_embed_dim=WIDTH, time_embed_dim=8, condition_dim=4)  # fmt: skip
    return made("CogView4ControlPipeline", generic.cogview4, transformer=transformer)


@case("z_image_omni", "ZImageOmniPipeline", negative=True)
def z_image_omni() -> Any:
    parts = images.z_image().components
    size = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    siglip = seeded(transformers.Siglip2VisionModel, transformers.Siglip2VisionConfig(patch_size=8, num_patches=16, **size))
    processor = image_processor("Siglip2ImageProcessor", patch_size=8, max_num_patches=16)
    transformer = seeded(
        d.ZImageTransformer2DModel, in_channels=4, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=WIDTH,
        axes_dims=[8, 4, 4], axes_lens=[1536, 512, 512], siglip_feat_dim=16)  # fmt: skip
    return d.ZImageOmniPipeline(**parts | {"transformer": transformer, "siglip": siglip, "siglip_processor": processor})


def _z_image_controlnet(channels: int = 4) -> Any:
    return lively(seeded(
        d.ZImageControlNetModel, control_layers_places=[0], control_refiner_layers_places=[0], control_in_dim=channels, dim=32,
        n_refiner_layers=1, n_heads=2, n_kv_heads=2))  # fmt: skip


@case("z_image_controlnet", "ZImageControlNetPipeline", columns=CONTROL, negative=True)
def z_image_controlnet() -> Any:
    return made("ZImageControlNetPipeline", images.z_image, controlnet=_z_image_controlnet())


@case("z_image_generic", "ZImagePipeline", negative=True)
def z_image_generic() -> Any:
    return images.z_image()


@case("z_image_controlnet_inpaint", "ZImageControlNetInpaintPipeline", columns=INPAINT | CONTROL, negative=True)
def z_image_controlnet_inpaint() -> Any:
    return made("ZImageControlNetInpaintPipeline", images.z_image, controlnet=_z_image_controlnet(9))
