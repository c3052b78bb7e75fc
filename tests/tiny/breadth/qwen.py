"""Qwen-Image: edits, inpainting, ControlNet, layers, and 2.1."""

from typing import Any

import diffusers as d

from tests.tiny import image_pipelines as images
from tests.tiny.breadth.components import qwen3_vl, qwen3_vl_processor
from tests.tiny.breadth.registry import CONTROL, IMAGE, INPAINT, PICTURE, Medium, also, case, made, reuse
from tests.tiny.encoders import WIDTH
from tests.tiny.parts import euler, lively, seeded

QWEN = {**IMAGE, "true_cfg_scale": 3.0}


def _small_edit(target_area: float, ratio: float) -> tuple[int, int, None]:
    return 32, 32, None


reuse(
    "qwen_edit",
    "QwenImageEditPipeline",
    images.qwen_image_edit_plus,
    call=QWEN,
    columns=PICTURE,
    negative=True,
    constants={"calculate_dimensions": _small_edit},
)
reuse(
    "qwen_edit_inpaint",
    "QwenImageEditInpaintPipeline",
    images.qwen_image_edit_plus,
    call=QWEN,
    columns=INPAINT,
    negative=True,
    constants={"calculate_dimensions": _small_edit},
)
reuse("qwen_img2img", "QwenImageImg2ImgPipeline", images.qwen_image, call=QWEN, columns=PICTURE, negative=True)
reuse(
    "qwen_inpaint",
    "QwenImageInpaintPipeline",
    images.qwen_image,
    call=QWEN,
    columns=INPAINT,
    negative=True,
)


def _qwen_control(extra: int = 0) -> Any:
    return lively(
        seeded(
            d.QwenImageControlNetModel,
            patch_size=2,
            in_channels=16,
            out_channels=4,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            axes_dims_rope=(8, 4, 4),
            extra_condition_channels=extra,
        )
    )


@case("qwen_controlnet", "QwenImageControlNetPipeline", call=QWEN, columns=CONTROL, negative=True)
def qwen_controlnet() -> Any:
    return made("QwenImageControlNetPipeline", images.qwen_image, controlnet=_qwen_control())


@case(
    "qwen_layered",
    "QwenImageLayeredPipeline",
    columns={"image": Medium(mode="RGBA")},
    negative=True,
    call={"height": 32, "width": 32, "max_sequence_length": 32, "true_cfg_scale": 3.0, "layers": 2, "resolution": 640},
    constants={"calculate_dimensions": lambda area, ratio: (32, 32)},
)
def qwen_layered() -> Any:
    parts = images.qwen_image_edit_plus(use_layer3d_rope=True, use_additional_t_cond=True).components
    vae = lively(seeded(
        d.AutoencoderKLQwenImage, base_dim=12, z_dim=4, latents_mean=[0.0] * 4, latents_std=[1.0] * 4, input_channels=4, dim_mult=[1] * 4,
        num_res_blocks=1, temperal_downsample=[False, True, True]))  # fmt: skip
    return d.QwenImageLayeredPipeline(**parts | {"vae": vae})


def _qwen21_vae() -> Any:
    return lively(seeded(
        d.AutoencoderKLQwenImage21, base_dim=6, decoder_base_dim=6, z_dim=4, dim_mult=[1, 1, 1, 1, 1], num_res_blocks=1,
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4, in_channels=4, out_channels=4))  # fmt: skip


@case("qwen_image21", "QwenImage21Pipeline", call={"height": 64, "width": 64, "true_cfg_scale": 3.0}, negative=True)
def qwen_image21() -> Any:
    transformer = lively(seeded(
        d.QwenImage21Transformer2DModel, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        context_in_dim=WIDTH, axes_dims_rope=(8, 4, 4)))  # fmt: skip
    scheduler = euler(shift=1.0, use_dynamic_shifting=True)
    return d.QwenImage21Pipeline(scheduler, _qwen21_vae(), qwen3_vl(), qwen3_vl_processor(), transformer)


also(
    "qwen_image21_nocache",
    qwen_image21,
    "QwenImage21Pipeline",
    {"height": 64, "width": 64, "true_cfg_scale": 3.0, "use_kv_cache": False},
    negative=True,
)
also(
    "qwen_image21_edit",
    qwen_image21,
    "QwenImage21Pipeline",
    {"height": 64, "width": 64, "true_cfg_scale": 3.0, "use_kv_cache": False, "output_resolution": 64},
    columns={"image": Medium(side=64)},
    negative=True,
)


@case(
    "qwen_edit_plus_generic",
    "QwenImageEditPlusPipeline",
    call=QWEN,
    columns={"image": Medium(listed=True)},
    negative=True,
    constants={"CONDITION_IMAGE_SIZE": 1024, "VAE_IMAGE_SIZE": 1024},
)
def qwen_edit_plus_generic() -> Any:
    return images.qwen_image_edit_plus()


@case(
    "qwen_controlnet_inpaint",
    "QwenImageControlNetInpaintPipeline",
    call=QWEN,
    columns=CONTROL | {"control_mask": Medium("mask")},
    negative=True,
)
def qwen_controlnet_inpaint() -> Any:
    return made("QwenImageControlNetInpaintPipeline", images.qwen_image, controlnet=_qwen_control(4))
