"""Encoders, processors and VAEs that several of the pipelines have."""

from typing import Any

import diffusers as d
import torch
import transformers

from flow_factory.utils.processors import without_video
from tests.tiny.encoders import WIDTH, image_processor, qwen_processor
from tests.tiny.parts import seeded
from tests.tiny.text import llama_tokenizer, qwen_tokenizer


def _qwen3_vl_config(layers: int = 2) -> transformers.Qwen3VLConfig:
    tokens = qwen_tokenizer()
    rope = {"mrope_section": [2, 1, 1], "rope_type": "default", "rope_theta": 1e6, "mrope_interleaved": True}
    special = {"image_token_id": "image_pad", "video_token_id": "video_pad"}
    special |= {"vision_start_token_id": "vision_start", "vision_end_token_id": "vision_end"}
    return transformers.Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokens), "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": layers,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 4096,
            "initializer_range": WIDTH**-0.5, "rope_parameters": rope, "pad_token_id": tokens.pad_token_id},
        vision_config={
            "depth": 2, "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_heads": 2, "out_hidden_size": WIDTH, "patch_size": 14,
            "num_position_embeddings": 16, "deepstack_visual_indexes": [0], "initializer_range": WIDTH**-0.5},
        **{name: tokens.convert_tokens_to_ids(f"<|{token}|>") for name, token in special.items()})  # fmt: skip


def qwen3_vl(layers: int = 2, model: str = "ForConditionalGeneration") -> Any:
    return seeded(getattr(transformers, f"Qwen3VL{model}"), _qwen3_vl_config(layers))


def _pictures_alone(base: Any) -> Any:
    """A processor of this class without its video part, which needs torchvision."""
    tokens = talking_qwen()
    pictures = image_processor("Qwen2VLImageProcessor", min_pixels=28 * 28, max_pixels=56 * 56)
    return without_video(base)(pictures, tokens, chat_template=tokens.chat_template)


def qwen3_vl_processor() -> Any:
    return _pictures_alone(transformers.Qwen3VLProcessor)


def qwen25_vl_processor() -> Any:
    return _pictures_alone(transformers.Qwen2_5_VLProcessor)


TALK = """{%- for message in messages %}<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}{% for c in message.content %}{% if c.type == 'image' %}\
<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def talking_qwen() -> Any:
    """Its chat template takes contents of several parts."""
    tokens = qwen_tokenizer()
    tokens.chat_template = TALK
    return tokens


def talking_processor() -> Any:
    processor = qwen_processor()
    processor.chat_template = processor.tokenizer.chat_template = TALK
    return processor


def kl_vae16() -> Any:
    """A VAE with 16 latent channels, as SD3 and FLUX have: some pipelines do not ask how many there are."""
    return seeded(
        d.AutoencoderKL, sample_size=32, down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4,) * 4, layers_per_block=1, latent_channels=16, norm_num_groups=2, use_quant_conv=False,
        use_post_quant_conv=False, scaling_factor=0.3611, shift_factor=0.1159)  # fmt: skip


def hunyuan10_vae(channels: int = 4) -> Any:
    return seeded(
        d.AutoencoderKLHunyuanVideo, latent_channels=channels, down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4)  # fmt: skip


def llama_with_pad() -> Any:
    tokens = llama_tokenizer()
    tokens.pad_token = tokens.eos_token
    return tokens


def filled(module: Any) -> None:
    """Some classes leave weights as the memory has them."""

    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 3:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
