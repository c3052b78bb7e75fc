"""Names of linear layers in the authors' own code, by which ComfyUI and kohya's trainers call them, for transformers of diffusers.

Sources: the key maps of ComfyUI's `comfy/lora.py`, the modules that sd-scripts and musubi-tuner name, diffusers' single-file converters.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

Rests = Mapping[str, tuple[str, ...]]
"""Original name within a block -> the layers of diffusers that it is; where it is fused, in the order of their outputs."""
SAME: tuple[str, Rests] = ("", {})
"""Of blocks in which all names are alike."""


@dataclass(frozen=True)
class Names:
    """One class of transformers."""

    blocks: Mapping[str, tuple[str, Rests]]
    """diffusers' list of blocks -> the original list, and what is in a block; `SAME`: all names are alike."""
    top: Mapping[str, str] = field(default_factory=dict)
    """Beginnings of layers outside blocks -> original ones."""
    swapped: tuple[str, ...] = ()
    """Endings of layers whose halves, scale and shift, are the other way round there."""
    kohya: bool = True
    """Whether a trainer of kohya's reads the format."""
    down_up: bool = False
    """Whether diffusers reads ComfyUI's file only with `lora_down` and `lora_up`."""
    alphas: bool = True
    """Whether diffusers reads `.alpha` in ComfyUI's file; if not, the scale is in the weights."""


QKV, ADDED = ("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj")


def _in(module: str, layers: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{module}.{layer}" for layer in layers)


IMAGE_AND_TEXT: Rests = {
    "img_attn.qkv": _in("attn", QKV), "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.qkv": _in("attn", ADDED), "txt_attn.proj": ("attn.to_add_out",),
}  # fmt: skip
FEED_FORWARD: Rests = {
    "img_mlp.0": ("ff.net.0.proj",), "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",), "txt_mlp.2": ("ff_context.net.2",),
}  # fmt: skip
SINGLE: Rests = {"linear1": (*_in("attn", QKV), "proj_mlp"), "linear2": ("proj_out",)}
FLUX1 = Names(
    {
        "transformer_blocks": (
            "double_blocks",
            {**IMAGE_AND_TEXT, **FEED_FORWARD, "img_mod.lin": ("norm1.linear",), "txt_mod.lin": ("norm1_context.linear",)},
        ),
        "single_transformer_blocks": ("single_blocks", {**SINGLE, "modulation.lin": ("norm.linear",)}),
    },
    {
        "x_embedder": "img_in", "context_embedder": "txt_in", "proj_out": "final_layer.linear",
        "norm_out.linear": "final_layer.adaLN_modulation.1",
        **{f"time_text_embed.{ours}_embedder.linear_{k}": f"{theirs}_in.{way}_layer" for ours, theirs in
           (("timestep", "time"), ("guidance", "guidance"), ("text", "vector")) for k, way in ((1, "in"), (2, "out"))},
    },
    swapped=("norm_out.linear",),
    down_up=True,
)  # fmt: skip
CHROMA = Names(
    {
        "transformer_blocks": ("double_blocks", {**IMAGE_AND_TEXT, **FEED_FORWARD}),
        "single_transformer_blocks": ("single_blocks", SINGLE),
        "distilled_guidance_layer.layers": (
            "distilled_guidance_layer.layers", {"in_layer": ("linear_1",), "out_layer": ("linear_2",)},
        ),
    },
    {
        "x_embedder": "img_in", "context_embedder": "txt_in", "proj_out": "final_layer.linear",
        "distilled_guidance_layer": "distilled_guidance_layer",
    },
    down_up=True,
)  # fmt: skip
FLUX2 = Names(
    {
        "transformer_blocks": (
            "double_blocks",
            {
                **IMAGE_AND_TEXT, "img_mlp.0": ("ff.linear_in",), "img_mlp.2": ("ff.linear_out",),
                "txt_mlp.0": ("ff_context.linear_in",), "txt_mlp.2": ("ff_context.linear_out",),
            },
        ),
        "single_transformer_blocks": ("single_blocks", {"linear1": ("attn.to_qkv_mlp_proj",), "linear2": ("attn.to_out",)}),
    },
    {
        "x_embedder": "img_in", "context_embedder": "txt_in", "proj_out": "final_layer.linear",
        "norm_out.linear": "final_layer.adaLN_modulation.1",
        "single_stream_modulation.linear": "single_stream_modulation.lin",
        "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
        "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
        **{f"time_guidance_embed.{ours}_embedder.linear_{k}": f"{theirs}_in.{way}_layer" for ours, theirs in
           (("timestep", "time"), ("guidance", "guidance")) for k, way in ((1, "in"), (2, "out"))},
    },
    swapped=("norm_out.linear",),
    alphas=False,
)  # fmt: skip
SD3 = Names(
    {
        "transformer_blocks": (
            "joint_blocks",
            {
                "x_block.attn.qkv": _in("attn", QKV), "x_block.attn.proj": ("attn.to_out.0",),
                "x_block.attn2.qkv": _in("attn2", QKV), "x_block.attn2.proj": ("attn2.to_out.0",),
                "x_block.mlp.fc1": ("ff.net.0.proj",), "x_block.mlp.fc2": ("ff.net.2",),
                "x_block.adaLN_modulation.1": ("norm1.linear",),
                "context_block.attn.qkv": _in("attn", ADDED), "context_block.attn.proj": ("attn.to_add_out",),
                "context_block.mlp.fc1": ("ff_context.net.0.proj",), "context_block.mlp.fc2": ("ff_context.net.2",),
                "context_block.adaLN_modulation.1": ("norm1_context.linear",),
            },
        ),
    },
    {
        "context_embedder": "context_embedder", "proj_out": "final_layer.linear", "norm_out.linear": "final_layer.adaLN_modulation.1",
        **{f"time_text_embed.{ours}_embedder.linear_{k}": f"{theirs}_embedder.mlp.{n}" for ours, theirs in
           (("timestep", "t"), ("text", "y")) for k, n in ((1, 0), (2, 2))},
    },
    swapped=("norm_out.linear", "norm1_context.linear"),  # the second in the last block alone, whose norm has two parts
)  # fmt: skip
WAN = Names(
    {
        "blocks": (
            "blocks",
            {
                **{f"{theirs}.{o}": (f"{ours}.{layer}",) for theirs, ours in (("self_attn", "attn1"), ("cross_attn", "attn2"))
                   for o, layer in zip("qkvo", (*QKV, "to_out.0"), strict=True)},
                "cross_attn.k_img": ("attn2.add_k_proj",), "cross_attn.v_img": ("attn2.add_v_proj",),
                "ffn.0": ("ffn.net.0.proj",), "ffn.2": ("ffn.net.2",),
            },
        ),
    },
    {
        "proj_out": "head.head", "condition_embedder.time_proj": "time_projection.1",
        "condition_embedder.image_embedder.ff.net.0.proj": "img_emb.proj.1",
        "condition_embedder.image_embedder.ff.net.2": "img_emb.proj.3",
        **{f"condition_embedder.{what}_embedder.linear_{k}": f"{what}_embedding.{n}" for what in ("time", "text") for k, n in
           ((1, 0), (2, 2))},
    },
)  # fmt: skip
WAN_VACE = replace(
    WAN,
    blocks={
        **WAN.blocks,
        "vace_blocks": ("vace_blocks", {**WAN.blocks["blocks"][1], "before_proj": ("proj_in",), "after_proj": ("proj_out",)}),
    },
    kohya=False,
)
QWEN = Names({"transformer_blocks": SAME}, {k: k for k in ("img_in", "txt_in", "time_text_embed", "norm_out", "proj_out")})
Z_IMAGE = Names(
    dict.fromkeys(("layers", "noise_refiner", "context_refiner"), SAME),
    {k: k for k in ("t_embedder", "cap_embedder", "all_x_embedder", "all_final_layer")},
)
LTX = Names(
    {"transformer_blocks": SAME},
    {"proj_in": "patchify_proj", "time_embed": "adaln_single", "caption_projection": "caption_projection", "proj_out": "proj_out"},
    kohya=False, alphas=False,
)  # fmt: skip
LTX2 = Names(
    {"transformer_blocks": SAME},
    {
        **LTX.top, **{f"audio_{ours}": f"audio_{theirs}" for ours, theirs in LTX.top.items()},
        "prompt_adaln": "prompt_adaln_single", "audio_prompt_adaln": "audio_prompt_adaln_single",
        "av_cross_attn_video_scale_shift": "av_ca_video_scale_shift_adaln_single",
        "av_cross_attn_audio_scale_shift": "av_ca_audio_scale_shift_adaln_single",
        "av_cross_attn_video_a2v_gate": "av_ca_a2v_gate_adaln_single",
        "av_cross_attn_audio_v2a_gate": "av_ca_v2a_gate_adaln_single",
    },
    kohya=False, alphas=False,
)  # fmt: skip
HIDREAM = Names(
    dict.fromkeys(("double_stream_blocks", "single_stream_blocks"), SAME),
    {k: k for k in ("t_embedder", "p_embedder", "x_embedder", "caption_projection", "final_layer")},
    kohya=False, alphas=False,
)  # fmt: skip
HUNYUAN = Names(
    {
        "transformer_blocks": (
            "double_blocks",
            {
                **{f"{theirs}_{o}": parts for theirs, qkv, out in (("img_attn", QKV, "to_out.0"), ("txt_attn", ADDED, "to_add_out"))
                   for o, parts in (("qkv", _in("attn", qkv)), ("proj", (f"attn.{out}",)))},
                **{f"{theirs}_mlp.fc{k}": (f"{ours}.net.{layer}",) for theirs, ours in (("img", "ff"), ("txt", "ff_context"))
                   for k, layer in ((1, "0.proj"), (2, "2"))},
                "img_mod.linear": ("norm1.linear",), "txt_mod.linear": ("norm1_context.linear",),
            },
        ),
        "single_transformer_blocks": ("single_blocks", {**SINGLE, "modulation.linear": ("norm.linear",)}),
        "context_embedder.token_refiner.refiner_blocks": (
            "txt_in.individual_token_refiner.blocks",
            {
                "self_attn_qkv": _in("attn", QKV), "self_attn_proj": ("attn.to_out.0",),
                "mlp.fc1": ("ff.net.0.proj",), "mlp.fc2": ("ff.net.2",),
            },
        ),
    },
    {
        "proj_out": "final_layer.linear", "norm_out.linear": "final_layer.adaLN_modulation.1",
        "context_embedder.proj_in": "txt_in.input_embedder", "context_embedder.time_text_embed.text_embedder": "txt_in.c_embedder",
        **{f"{ours}.linear_{k}": f"{theirs}.mlp.{n}" for ours, theirs in
           (("context_embedder.time_text_embed.timestep_embedder", "txt_in.t_embedder"),
            ("time_text_embed.timestep_embedder", "time_in"), ("time_text_embed.guidance_embedder", "guidance_in"))
           for k, n in ((1, 0), (2, 2))},
        **{f"time_text_embed.text_embedder.linear_{k}": f"vector_in.{way}_layer" for k, way in ((1, "in"), (2, "out"))},
    },
    swapped=("norm_out.linear",), alphas=False,
)  # fmt: skip
KNOWN: Mapping[str, Names] = {
    "FluxTransformer2DModel": FLUX1,
    "Flux2Transformer2DModel": FLUX2,
    "ChromaTransformer2DModel": CHROMA,
    "SD3Transformer2DModel": SD3,
    "WanTransformer3DModel": WAN,
    "WanVACETransformer3DModel": WAN_VACE,
    "QwenImageTransformer2DModel": QWEN,
    "ZImageTransformer2DModel": Z_IMAGE,
    "LTXVideoTransformer3DModel": LTX,
    "LTX2VideoTransformer3DModel": LTX2,
    "HiDreamImageTransformer2DModel": HIDREAM,
    "HunyuanVideoTransformer3DModel": HUNYUAN,
}
"""By the class of the transformer."""
