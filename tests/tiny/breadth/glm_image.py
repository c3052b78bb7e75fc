"""GLM-Image, whose language model draws tokens of the picture before the transformer does."""

from typing import Any

import diffusers as d
import transformers

from tests.tiny.breadth.registry import Medium, also, case
from tests.tiny.encoders import VISION, WIDTH, _decoder, image_processor, t5
from tests.tiny.parts import euler, lively, seeded
from tests.tiny.text import glm_image_tokenizer

PICTURES = 64
"""Tokens of pictures."""
IMAGES = {"shortest_edge": 32 * 32, "longest_edge": 32 * 32}
"""Pixels of a picture."""


def _language_model() -> Any:
    tokens = glm_image_tokenizer()
    rope = {"mrope_section": [1, 1, 2], "rope_type": "default", "rope_theta": 1e4}
    text = _decoder(tokens) | {"vocab_size": len(tokens) + PICTURES, "vision_vocab_size": PICTURES, "rope_parameters": rope}
    config = transformers.GlmImageConfig(
        text_config=text | {"eos_token_id": None},  # it would end a picture early
        vision_config={"depth": 1, "num_heads": 2, "image_size": 32, "patch_size": 16}
        | {k: VISION[k] for k in ("hidden_size", "intermediate_size")},
        vq_config={"embed_dim": 8, "num_embeddings": PICTURES, "latent_channels": WIDTH},
        image_token_id=tokens.convert_tokens_to_ids("<|image|>"),
        image_start_token_id=PICTURES - 2,
        image_end_token_id=PICTURES - 1,
    )
    return seeded(transformers.GlmImageForConditionalGeneration, config)


@case("glm_image", "GlmImagePipeline", call={"height": 32, "width": 32, "max_sequence_length": 32})
def glm_image() -> Any:
    tokens, glyphs = glm_image_tokenizer(), transformers.ByT5Tokenizer()
    images = image_processor("GlmImageImageProcessor", patch_size=16, temporal_patch_size=1, merge_size=1, size=IMAGES)
    processor = transformers.GlmImageProcessor(images, tokens, chat_template=tokens.chat_template)
    transformer = lively(seeded(
        d.GlmImageTransformer2DModel, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        text_embed_dim=32, time_embed_dim=16, condition_dim=8, prior_vq_quantizer_codebook_size=PICTURES))  # fmt: skip
    vae = seeded(
        d.AutoencoderKL, sample_size=32, down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4,) * 4, layers_per_block=1, latent_channels=4, norm_num_groups=2, latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4)  # fmt: skip
    return d.GlmImagePipeline(
        glyphs, processor, t5(vocabulary=len(glyphs)), _language_model(), vae, transformer, euler(use_dynamic_shifting=True)
    )


also(
    "glm_image_edit",
    glm_image,
    "GlmImagePipeline",
    {"height": 32, "width": 32, "max_sequence_length": 32},
    columns={"image": Medium(listed=True)},
)
