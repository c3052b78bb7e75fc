"""More image pipelines from text: Nucleus, AuraFlow, OmniGen, PRX in pixels, Sana, Lumina; and JoyImage, which edits."""

from typing import Any

import diffusers as d
from torch import nn

from tests.tiny import generic_pipelines as generic
from tests.tiny.breadth.components import filled, qwen3_vl, qwen3_vl_processor, talking_qwen
from tests.tiny.breadth.images_t2i import prx
from tests.tiny.breadth.registry import CONTROL, IMAGE, PICTURE, Medium, also, case, made, reuse
from tests.tiny.encoders import WIDTH, language, t5
from tests.tiny.parts import euler, kl_vae, lively, qwen_vae, seeded, wan_vae
from tests.tiny.text import gemma_tokenizer, llama_tokenizer, t5_tokenizer


@case("nucleusmoe", "NucleusMoEImagePipeline", negative=True)
def nucleusmoe() -> Any:
    transformer = lively(
        seeded(
            d.NucleusMoEImageTransformer2DModel,
            in_channels=16,
            out_channels=4,
            num_layers=5,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            axes_dims_rope=(8, 4, 4),
            num_experts=4,
            moe_intermediate_dim=16,
            capacity_factors=[2.0] * 5,
        )
    )
    filled(transformer)
    return d.NucleusMoEImagePipeline(transformer, euler(use_dynamic_shifting=True), qwen_vae(), qwen3_vl(9), qwen3_vl_processor())


@case("auraflow", "AuraFlowPipeline", negative=True)
def auraflow() -> Any:
    transformer = lively(seeded(
        d.AuraFlowTransformer2DModel, sample_size=4, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=32, caption_projection_dim=32, pos_embed_max_size=64))  # fmt: skip
    return d.AuraFlowPipeline(t5_tokenizer(), t5("UMT5"), kl_vae(), transformer, euler())


@case("omnigen", "OmniGenPipeline", needs=("torchvision",), call={"height": 32, "width": 32})
def omnigen() -> Any:
    tokens = llama_tokenizer()
    transformer = lively(seeded(
        d.OmniGenTransformer2DModel, in_channels=4, hidden_size=32, num_attention_heads=2, num_key_value_heads=2, intermediate_size=32,
        num_layers=2, pad_token_id=0, vocab_size=len(tokens), max_position_embeddings=1024, time_step_dim=16,
        rope_scaling={"short_factor": [1.0] * 8, "long_factor": [1.0] * 8}))  # fmt: skip
    return d.OmniGenPipeline(transformer, euler(shift=1.0, invert_sigmas=True), kl_vae(), tokens)


BUCKETS = {"image_processor.BUCKETS": {1024: [(32, 32)]}}


@case("joyimage_edit", "JoyImageEditPipeline", call={**IMAGE}, columns=PICTURE, negative=True, constants=BUCKETS)
def joyimage_edit() -> Any:
    transformer = lively(seeded(
        d.JoyImageEditTransformer3DModel, in_channels=16, hidden_size=32, num_attention_heads=2, text_dim=WIDTH, num_layers=2,
        rope_dim_list=[4, 6, 6]))  # fmt: skip
    return d.JoyImageEditPipeline(
        euler(), wan_vae(), qwen3_vl(), talking_qwen(), transformer, qwen3_vl_processor(), text_token_max_length=64
    )


@case("prx_pixel", "PRXPixelPipeline", call={"height": 32, "width": 32, "use_resolution_binning": False}, negative=True)
def prx_pixel() -> Any:
    parts = prx().components
    transformer = lively(seeded(
        d.PRXTransformer2DModel, in_channels=3, patch_size=8, context_in_dim=WIDTH, hidden_size=32, num_heads=2, depth=2, axes_dim=[8, 8],
        bottleneck_size=16))  # fmt: skip
    return d.PRXPixelPipeline(transformer, euler(), parts["text_encoder"], parts["tokenizer"], prompt_max_tokens=32)


SANA = {**IMAGE, "complex_human_instruction": None, "use_resolution_binning": False}
reuse("sana_pag", "SanaPAGPipeline", generic.sana, call=SANA, negative=True)


def _sana_sizes() -> dict[str, Any]:
    return {"in_channels": 4, "out_channels": 4, "num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 4,
            "num_cross_attention_heads": 2, "cross_attention_head_dim": 4, "cross_attention_dim": 8, "caption_channels": WIDTH}  # fmt: skip


@case("sana_controlnet", "SanaControlNetPipeline", call=SANA, columns=CONTROL, negative=True)
def sana_controlnet() -> Any:
    return made("SanaControlNetPipeline", generic.sana, controlnet=lively(seeded(d.SanaControlNetModel, **_sana_sizes())))


@case("sana_sprint", "SanaSprintPipeline", call=SANA)
def sana_sprint() -> Any:
    transformer = seeded(d.SanaTransformer2DModel, **_sana_sizes(), qk_norm="rms_norm_across_heads", guidance_embeds=True)
    return made("SanaSprintPipeline", generic.sana, transformer=transformer, scheduler=d.SCMScheduler())


@case("lumina", "LuminaPipeline", call={**IMAGE, "clean_caption": False}, negative=True)
def lumina() -> Any:
    tokens = gemma_tokenizer()
    transformer = lively(seeded(
        d.LuminaNextDiT2DModel, sample_size=4, patch_size=2, in_channels=4, hidden_size=32, num_layers=2, num_attention_heads=4,
        num_kv_heads=2, multiple_of=16, cross_attention_dim=WIDTH, learn_sigma=True))  # fmt: skip
    nn.init.constant_(transformer.pad_token, 0.1)  # the class leaves it as the memory has it
    encoder = language("Gemma", "Model", tokens)
    return d.LuminaPipeline(transformer, euler(), kl_vae(), encoder, tokens)


@case(
    "joyimage_edit_plus",
    "JoyImageEditPlusPipeline",
    call={**IMAGE},
    columns={"image": Medium(listed=True)},
    negative=True,
    constants=BUCKETS,
)
def joyimage_edit_plus() -> Any:
    transformer = lively(seeded(
        d.JoyImageEditPlusTransformer3DModel, in_channels=16, hidden_size=32, num_attention_heads=2, text_dim=WIDTH, num_layers=2,
        rope_dim_list=[4, 6, 6]))  # fmt: skip
    return d.JoyImageEditPlusPipeline(
        euler(), wan_vae(), qwen3_vl(), talking_qwen(), transformer, qwen3_vl_processor(), text_token_max_length=64
    )


@case("dreamlite", "DreamLitePipeline", call={**IMAGE}, negative=True)
def dreamlite() -> Any:
    unet = lively(seeded(
        d.DreamLiteUNetModel, sample_size=4, in_channels=4, out_channels=4, block_out_channels=(8, 8), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH, attention_head_dim=2, norm_num_groups=2))  # fmt: skip
    vae = seeded(d.AutoencoderTiny, latent_channels=4, encoder_block_out_channels=(4,) * 4, decoder_block_out_channels=(4,) * 4)
    return d.DreamLitePipeline(qwen3_vl(), talking_qwen(), qwen3_vl_processor(), vae, unet, euler(use_dynamic_shifting=True))


also("chroma", generic.chroma, "ChromaPipeline", IMAGE, negative=True)
also("cogview4", generic.cogview4, "CogView4Pipeline", {**IMAGE, "max_sequence_length": 16}, negative=True)
also("lumina2", generic.lumina2, "Lumina2Pipeline", {**IMAGE, "max_sequence_length": 48}, negative=True)
also("hidream", generic.hidream, "HiDreamImagePipeline", IMAGE, negative=True, attributes={"default_sample_size": 4})
also("sana", generic.sana, "SanaPipeline", SANA, negative=True)
