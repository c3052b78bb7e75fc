"""Floating-point operations of a transformer's forward and backward, by a formula."""

import math
import re
from dataclasses import dataclass
from typing import Any

from torch import nn

from flow_factory.memory.sizes import width_of

Rules = tuple[tuple[str, str], ...]

BOTH = r"^single_transformer_blocks\.\d+\.(attn|proj_mlp|proj_out)"
ADDED = r"\.attn\.(add_|to_add_out)"
LAYERS: dict[str, Rules] = {
    "FluxTransformer2DModel": (
        (BOTH, "both"), (rf"^context_embedder|{ADDED}|\.ff_context\.", "text"), (r"^x_embedder|^proj_out|\.attn\.to_|\.ff\.", "image"),
    ),
    "SD3Transformer2DModel": (
        (rf"^context_embedder|{ADDED}|\.ff_context\.", "text"), (r"^pos_embed|^proj_out|\.attn2?\.to_|\.ff\.", "image"),
    ),
    "QwenImageTransformer2DModel": (
        (rf"^txt_in|{ADDED}|\.txt_mlp\.", "text"), (r"^img_in|^proj_out|\.attn\.to_|\.img_mlp\.", "image"),
    ),
    "WanTransformer3DModel": (
        (r"\.text_embedder\.|\.attn2\.to_[kv]", "text"), (r"^patch_embedding|^proj_out|\.attn[12]\.to_|\.ffn\.", "image"),
    ),
}  # fmt: skip
"""Class -> (pattern of a layer's name, its tokens). The first match counts. Layers without a match see one vector for each sample."""
ATTENTIONS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "FluxTransformer2DModel": ((r"transformer_blocks\.\d+\.attn$", "both", "both"),),
    "SD3Transformer2DModel": ((r"^transformer_blocks\.\d+\.attn$", "both", "both"), (r"\.attn2$", "image", "image")),
    "QwenImageTransformer2DModel": ((r"^transformer_blocks\.\d+\.attn$", "both", "both"),),
    "WanTransformer3DModel": ((r"^blocks\.\d+\.attn1$", "image", "image"), (r"^blocks\.\d+\.attn2$", "image", "text")),
}
"""Class -> (pattern of an attention's name, its queries, its keys)."""


@dataclass(frozen=True)
class Operations:
    """Operations of one sample. An addition and a multiplication count as two."""

    forward: float
    backward: float


def operations(transformer: nn.Module, image: int, text: int) -> Operations:
    """The operations that the mathematics of one sample needs, whichever kernels compute it.

    A linear layer or a patch embedding of n x m weights does 2 n m operations for each of its tokens; an attention of q queries, k keys
    and width w does 4 q k w (scores, then values). The backward adds the same number for the input of each layer, the same again for
    trained weights, and twice the forward of an attention. Recomputation by gradient checkpointing is not counted, so that results of
    different settings are comparable. Norms, activations, the text encoders and the VAE are not counted either.

    Args:
        transformer: one of the classes of `LAYERS`, with or without a LoRA. It may be on the meta device.
        image: tokens of the image or video.
        text: tokens of the text.

    Raises:
        KeyError: there is no formula for the class.
    """
    tokens = {"image": image, "text": text, "both": image + text}
    kind = type(transformer).__name__.removeprefix("FSDP")
    products = trained = attentions = 0.0
    for name, module in transformer.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.Conv3d)):
            seen = next((tokens[stream] for pattern, stream in LAYERS[kind] if re.search(pattern, name)), 1)
            done = 2.0 * weights_of(module) * seen
            products += done
            trained += done * module.weight.requires_grad
        for pattern, queries, keys in ATTENTIONS[kind]:
            if re.search(pattern, name):
                attentions += 4.0 * tokens[queries] * tokens[keys] * width_of(transformer.config)
    return Operations(products + attentions, products + trained + 2 * attentions)


def weights_of(layer: Any) -> int:
    """The number of weights of a layer, from its features: 4-bit weights are packed, and with ZeRO-3 they are elsewhere."""
    if isinstance(layer, nn.Linear):
        return layer.in_features * layer.out_features
    return layer.in_channels * layer.out_channels * math.prod(layer.kernel_size) // layer.groups
