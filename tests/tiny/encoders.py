"""Tiny random text and image encoders of the real classes, and the processors that go with them."""

from functools import lru_cache
from typing import Any

import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin, Qwen2VLProcessor
from transformers.utils import is_torchvision_available

from tests.tiny.parts import seeded
from tests.tiny.text import clip_tokenizer, llava_tokenizer, mistral_tokenizer, qwen_tokenizer, t5_tokenizer

WIDTH = 16


def _ids(tokens: PreTrainedTokenizerBase) -> dict[str, Any]:
    return {name: getattr(tokens, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}


def clip_text(model: str = "CLIPTextModel", positions: int = 77, width: int = 32) -> PreTrainedModel:
    """Two layers."""
    tokens = clip_tokenizer()
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokens), hidden_size=width, intermediate_size=64, num_attention_heads=4, num_hidden_layers=2, projection_dim=width,
        max_position_embeddings=positions, **_ids(tokens))  # fmt: skip
    return seeded(getattr(transformers, model), config)


def t5(family: str = "T5", width: int = 32, vocabulary: int | None = None) -> PreTrainedModel:
    """Two layers. `family` is T5 or UMT5; built directly it would have dropout and be in training mode."""
    config = getattr(transformers, f"{family}Config")(
        vocab_size=vocabulary or len(t5_tokenizer()), d_model=width, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
        feed_forward_proj="gated-gelu", dropout_rate=0.0, is_encoder_decoder=False)  # fmt: skip
    return seeded(getattr(transformers, f"{family}EncoderModel"), config)


def _decoder(tokens: PreTrainedTokenizerBase, layers: int = 2, width: int = WIDTH) -> dict[str, Any]:
    """The config of a decoder; at transformers' own initialisation, 0.02, its layers would do nothing that one can see."""
    return {
        "vocab_size": len(tokens), "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": width // 2, "max_position_embeddings": 4096,
        "initializer_range": width**-0.5, **_ids(tokens)}  # fmt: skip


def language(family: str, model: str, tokens: PreTrainedTokenizerBase, layers: int = 2, **config: Any) -> PreTrainedModel:
    """A text-only language model; `model` is what its class has after the family's name."""
    kind = getattr(transformers, f"{family}Config")
    return seeded(getattr(transformers, family + model), kind(**_decoder(tokens, layers), **config))


VISION: dict[str, Any] = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_attention_heads": 2, "num_hidden_layers": 1}


def mistral3() -> PreTrainedModel:
    """31 layers: FLUX.2 reads the 10th, 20th and 30th."""
    tokens = mistral_tokenizer()
    config = transformers.Mistral3Config(
        text_config={"model_type": "mistral", "sliding_window": None, **_decoder(tokens, 31)},
        vision_config={"model_type": "pixtral", "image_size": 28, "patch_size": 7, **VISION},
        image_token_index=tokens.convert_tokens_to_ids("[IMG]"),
        vision_feature_layer=-1,
    )
    return seeded(transformers.Mistral3ForConditionalGeneration, config)


def llava(layers: int = 4) -> PreTrainedModel:
    """Its pictures have 4 tokens."""
    tokens = llava_tokenizer()
    config = transformers.LlavaConfig(
        text_config={"model_type": "llama", **_decoder(tokens, layers)},
        vision_config={"model_type": "clip_vision_model", "image_size": 16, "patch_size": 8, **VISION},
        image_token_index=tokens.convert_tokens_to_ids("<image>"),
        image_seq_length=4,
        pad_token_id=tokens.pad_token_id,
        vision_feature_layer=-1,
    )
    return seeded(transformers.LlavaForConditionalGeneration, config)


def gemma3(tokens: PreTrainedTokenizerBase) -> PreTrainedModel:
    special = {"boi_token_index": "<start_of_image>", "eoi_token_index": "<end_of_image>", "image_token_index": "<image_soft_token>"}
    config = transformers.Gemma3Config(
        text_config={"sliding_window": 512, "query_pre_attn_scalar": WIDTH // 2, **_decoder(tokens)},
        vision_config={"image_size": 28, "patch_size": 14, **VISION},
        mm_tokens_per_image=4,
        **{name: tokens.convert_tokens_to_ids(token) for name, token in special.items()},
    )
    return seeded(transformers.Gemma3ForConditionalGeneration, config)


def _qwen25_vl_config(width: int = WIDTH) -> transformers.Qwen2_5_VLConfig:
    tokens = qwen_tokenizer()
    rope = {"mrope_section": [width // 16, width // 16, width // 8], "rope_type": "default", "rope_theta": 1e6}
    special = {"image_token_id": "image_pad", "video_token_id": "video_pad"}
    special |= {"vision_start_token_id": "vision_start", "vision_end_token_id": "vision_end"}
    return transformers.Qwen2_5_VLConfig(
        text_config={"rope_parameters": rope, **_decoder(tokens, width=width)},
        vision_config={
            "depth": 2, "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_heads": 2, "out_hidden_size": width,
            "fullatt_block_indexes": [1], "initializer_range": WIDTH**-0.5},
        **{name: tokens.convert_tokens_to_ids(f"<|{token}|>") for name, token in special.items()})  # fmt: skip


def qwen25_vl(width: int = WIDTH) -> PreTrainedModel:
    return seeded(transformers.Qwen2_5_VLForConditionalGeneration, _qwen25_vl_config(width))


def qwen25_vl_text() -> PreTrainedModel:
    return seeded(transformers.Qwen2_5_VLTextModel, _qwen25_vl_config().get_text_config())


def clip_vision() -> PreTrainedModel:
    return seeded(transformers.CLIPVisionModel, transformers.CLIPVisionConfig(image_size=32, patch_size=8, projection_dim=WIDTH, **VISION))


# -- processors: their backend for torchvision where it is installed, else PIL's --------------------------------------------------


def image_processor(name: str, **kwargs: Any) -> Any:
    return getattr(transformers, name if is_torchvision_available() else f"{name}Pil")(**kwargs)


def clip_images(size: int = 32) -> Any:
    return image_processor("CLIPImageProcessor", size={"shortest_edge": size}, crop_size={"height": size, "width": size})


def pixtral_processor() -> Any:
    """What FLUX.2 has for a tokenizer; there is no PixtralProcessor without torchvision, and its tokenizer does for text."""
    tokens = mistral_tokenizer()
    if not is_torchvision_available():
        return tokens
    images = transformers.PixtralImageProcessor(size={"longest_edge": 28}, patch_size={"height": 14, "width": 14})
    return transformers.PixtralProcessor(images, tokens, patch_size=7, spatial_merge_size=2, chat_template=tokens.chat_template)


@lru_cache
def image_only_processor() -> type[Qwen2VLProcessor]:
    """Qwen2VLProcessor without its video part, whose one implementation needs torchvision; parts are `__init__`'s parameters.

    By its own name it would not be in a checkpoint's index what a real one is.
    """

    def __init__(self: Any, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None, **_: Any) -> None:
        for kind in ("image", "video"):
            setattr(self, f"{kind}_token", f"<|{kind}_pad|>")
            setattr(self, f"{kind}_token_id", tokenizer.convert_tokens_to_ids(f"<|{kind}_pad|>"))
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    base = Qwen2VLProcessor
    return type(base.__name__, (base,), {"__init__": __init__, "__module__": base.__module__})


def qwen_processor() -> Qwen2VLProcessor:
    """Its pictures have 1 to 4 tokens."""
    tokens = qwen_tokenizer()
    images = image_processor("Qwen2VLImageProcessor", min_pixels=28 * 28, max_pixels=56 * 56)
    if not is_torchvision_available():
        return image_only_processor()(images, tokens, chat_template=tokens.chat_template)
    return Qwen2VLProcessor(images, tokens, transformers.Qwen2VLVideoProcessor(), chat_template=tokens.chat_template)
