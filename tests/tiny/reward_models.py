"""Tiny random checkpoints of what the rewards load, of the real classes and in the published layouts. Offline, deterministic."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertTokenizer,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    CLIPConfig,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    PPOCRV5ServerDetConfig,
    PPOCRV5ServerDetForObjectDetection,
    PPOCRV5ServerRecConfig,
    PPOCRV5ServerRecForTextRecognition,
    RobertaTokenizer,
    SwinConfig,
)

from tests.tiny.clip import save_clip
from tests.tiny.drawn import drawn
from tests.tiny.text import WORDS, _bytes
from tests.tiny.vlm_rewards import save_hpsv3, save_video_align, save_vlm

BLOCK = {
    "ln_1.weight": (1,), "ln_1.bias": (1,), "ln_2.weight": (1,), "ln_2.bias": (1,),
    "attn.in_proj_weight": (3, 1), "attn.in_proj_bias": (3,), "attn.out_proj.weight": (1, 1), "attn.out_proj.bias": (1,),
    "mlp.c_fc.weight": (4, 1), "mlp.c_fc.bias": (4,), "mlp.c_proj.weight": (1, 4), "mlp.c_proj.bias": (1,),
}  # fmt: skip
"""Of a block of open_clip's, sizes in widths."""


def open_clip_shapes(words: int, vision: int = 32, text: int = 24, layers: int = 2, out: int = 16) -> dict[str, tuple[int, ...]]:
    """Names and shapes that open_clip 3.3 writes for a CLIP of 32 pixels in patches of 8 and 77 tokens."""
    shapes: dict[str, tuple[int, ...]] = {
        "positional_embedding": (77, text), "text_projection": (text, out), "logit_scale": (), "token_embedding.weight": (words, text),
        "visual.class_embedding": (vision,), "visual.positional_embedding": (17, vision), "visual.proj": (vision, out),
        "visual.conv1.weight": (vision, 3, 8, 8),
        **{f"{ln}.{kind}": (width,) for ln, width in (("visual.ln_pre", vision), ("visual.ln_post", vision), ("ln_final", text))
           for kind in ("weight", "bias")},
    }  # fmt: skip
    for tower, width in (("visual.", vision), ("", text)):
        for k in range(layers):
            shapes |= {f"{tower}transformer.resblocks.{k}.{n}": tuple(s * width for s in size) for n, size in BLOCK.items()}
    return shapes


def save_hps(folder: Path) -> dict[str, str]:
    """The keys of an entry: a file as `xswu/HPSv2` has it, beside a folder with CLIP's config and processor."""
    save_clip(folder / "clip")
    config = CLIPConfig.from_pretrained(folder / "clip")
    shapes = open_clip_shapes(config.text_config.vocab_size)
    tensors = {name: drawn(name, *shape) for name, shape in shapes.items()}
    torch.save({"epoch": 1, "state_dict": tensors}, folder / "hps.pt")
    for part, width, heads in ((config.vision_config, 32, 2), (config.text_config, 24, 2)):
        part.update({"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": heads, "hidden_act": "gelu"})
    config.save_pretrained(folder / "clip")
    return {"model_name_or_path": str(folder / "hps.pt"), "processor_name_or_path": str(folder / "clip")}


def save_aesthetic(folder: Path) -> dict[str, str]:
    """A head in the names of LAION's file, over a tiny CLIP."""
    sizes = {0: (1024, 16), 2: (128, 1024), 4: (64, 128), 6: (16, 64), 7: (1, 16)}
    tensors = {f"layers.{k}.weight": drawn(f"layers.{k}", *size) for k, size in sizes.items()}
    torch.save(tensors | {f"layers.{k}.bias": drawn(f"bias.{k}", size[0]) for k, size in sizes.items()}, folder / "head.pth")
    return {"model_name_or_path": str(save_clip(folder / "clip")), "head_name_or_path": str(folder / "head.pth")}


def image_reward_shapes(words: int, vision: int = 64, text: int = 128, layers: int = 2) -> dict[str, tuple[int, ...]]:
    """Names and shapes of ImageReward.pt, of a picture of 32 pixels in patches of 16."""
    see, read = "blip.visual_encoder.", "blip.text_encoder."
    block = {"norm1": (vision,), "norm2": (vision,), "attn.qkv": (3 * vision, vision), "attn.proj": (vision, vision),
             "mlp.fc1": (4 * vision, vision), "mlp.fc2": (vision, 4 * vision)}  # fmt: skip
    weights: dict[str, tuple[int, ...]] = {f"{see}patch_embed.proj": (vision, 3, 16, 16), f"{see}norm": (vision,)}
    weights |= {f"{see}blocks.{k}.{name}": shape for k in range(layers) for name, shape in block.items()}
    for k in range(layers):
        for kind, width in (("attention", text), ("crossattention", vision)):
            sizes = {"self.query": text, "self.key": width, "self.value": width, "output.dense": text}
            weights |= {f"{read}encoder.layer.{k}.{kind}.{name}": (text, size) for name, size in sizes.items()}
            weights[f"{read}encoder.layer.{k}.{kind}.output.LayerNorm"] = (text,)
        weights |= {
            f"{read}encoder.layer.{k}.intermediate.dense": (2 * text, text),
            f"{read}encoder.layer.{k}.output.dense": (text, 2 * text),
        }
        weights[f"{read}encoder.layer.{k}.output.LayerNorm"] = (text,)
    weights |= {f"{read}embeddings.LayerNorm": (text,), "blip.vision_proj": (16, vision), "blip.text_proj": (16, text)}
    for k, (out, size) in zip((0, 2, 4, 6, 7), ((1024, text), (128, 1024), (64, 128), (16, 64), (1, 16)), strict=True):
        weights[f"mlp.layers.{k}"] = (out, size)
    both = {f"{name}.{kind}": shape if kind == "weight" else shape[:1] for name, shape in weights.items() for kind in ("weight", "bias")}
    both |= {f"{read}embeddings.word_embeddings.weight": (words, text), f"{read}embeddings.position_embeddings.weight": (64, text)}
    return both | {f"{see}cls_token": (1, 1, vision), f"{see}pos_embed": (1, 5, vision)}


def save_image_reward(folder: Path) -> dict[str, str]:
    """The file ImageReward.pt, and a tokenizer of BERT's class."""
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *WORDS,
        *"abcdefghijklmnopqrstuvwxyz",
        *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"),
    ]
    BertTokenizer(vocab={word: k for k, word in enumerate(dict.fromkeys(words))}).save_pretrained(folder / "bert")
    tensors = {name: drawn(name, *shape) for name, shape in image_reward_shapes(len(dict.fromkeys(words))).items()}
    tensors["blip.text_encoder.embeddings.position_ids"] = torch.arange(64)[None]
    torch.save(tensors, folder / "ImageReward.pt")
    return {"model_name_or_path": str(folder / "ImageReward.pt"), "processor_name_or_path": str(folder / "bert")}


def save_clap(folder: Path) -> dict[str, str]:
    """CLAP of two stages of one Swin block, with the published rate and 10 seconds; any dropout off, as in evaluation."""
    tokens = RobertaTokenizer(**_bytes("<s>", "<pad>", "</s>", "<unk>", "<mask>"))
    text = {"vocab_size": len(tokens), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
            "max_position_embeddings": 90}  # fmt: skip
    audio = {"hidden_size": 32, "depths": [1, 1], "num_attention_heads": [2, 2], "patch_embeds_hidden_size": 16, "num_hidden_layers": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=16))
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            weight.data = drawn(name, *weight.shape)
    model.save_pretrained(folder)
    tokens.save_pretrained(folder)
    ClapFeatureExtractor(truncation="rand_trunc").save_pretrained(folder)
    return {"model_name_or_path": str(folder)}


HGNET = {
    "model_type": "hgnet_v2", "stem_channels": [3, 8, 8], "stage_in_channels": [8, 16, 16, 32], "stage_mid_channels": [8] * 4,
    "stage_out_channels": [16, 16, 32, 32], "hidden_sizes": [16, 16, 32, 32], "stage_num_blocks": [1] * 4, "stage_numb_of_layers": [1] * 4,
    "depths": [1] * 4, "stage_light_block": [False] * 4, "stage_kernel_size": [3] * 4,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}  # fmt: skip
LETTERS = ["blank", *"stop here"]


def save_ocr(folder: Path) -> dict[str, str]:
    """PP-OCRv5's classes; the detector finds text all over the picture, the recogniser reads letters of "stop here"."""
    line = {
        **HGNET,
        "stage_downsample": [True] * 4,
        "stem_strides": [2, 1, 1, 1, 1],
        "stage_downsample_strides": [[2, 1], [1, 2], [2, 1], [2, 1]],
    }
    kernels: dict[str, Any] = {"reduce_channel": [1, 1, 0], "return_channel": [1, 1, 0]}
    for size, kind in ((7, "long"), (5, "mid"), (3, "short")):
        half = size // 2
        kernels[f"vertical_long_to_small_conv_{kind}ratio"] = [[size, 1], [1, 1], [half, 0]]
        kernels[f"horizontal_small_to_long_conv_{kind}ratio"] = [[1, size], [1, 1], [0, half]]
        kernels[f"symmetric_conv_long_{kind}ratio"] = [[size, size], [1, 1], [half, half]]
    small = {"neck_out_channels": 16, "scale_factor_list": [1, 2, 4, 8], "kernel_list": [3, 2, 2], "intraclass_block_config": kernels}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        read = PPOCRV5ServerRecForTextRecognition(
            PPOCRV5ServerRecConfig(backbone_config=line, hidden_size=16, num_attention_heads=2, depth=1, head_out_channels=len(LETTERS))
        )
        find = PPOCRV5ServerDetForObjectDetection(PPOCRV5ServerDetConfig(backbone_config={**HGNET}, **small))
        for name, weight in read.named_parameters():
            weight.data = drawn(name, *weight.shape) * 3 if weight.ndim > 1 else weight.data
        for name, weight in find.head.named_parameters():
            weight.data.zero_().add_(2.0 if name.endswith("bias") else 0.0)
    find.save_pretrained(folder / "det")
    read.save_pretrained(folder / "rec")
    (folder / "rec" / "preprocessor_config.json").write_text(json.dumps({"character_list": LETTERS}))
    return {"detector_name_or_path": str(folder / "det"), "recognizer_name_or_path": str(folder / "rec")}


def save_geneval(folder: Path) -> dict[str, str]:
    """Mask2Former of four tiny Swin stages and 4 queries over two classes, and a tiny CLIP."""
    swin = SwinConfig(embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, window_size=4, out_features=["stage1", "stage2", "stage3", "stage4"])
    config = Mask2FormerConfig(
        backbone_config=swin, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=16, dim_feedforward=16,
        encoder_layers=1, decoder_layers=2, num_attention_heads=2, num_queries=4, id2label={0: "dog", 1: "cat"},
        label2id={"dog": 0, "cat": 1},
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Mask2FormerForUniversalSegmentation(config).save_pretrained(folder / "detector")
    return {"model_name_or_path": str(save_clip(folder / "clip")), "detector_name_or_path": str(folder / "detector")}


def save_only_clip(folder: Path) -> dict[str, str]:
    return {"model_name_or_path": str(save_clip(folder))}


SAVERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "PickScore": save_only_clip,
    "PickScore_Rank": save_only_clip,
    "CLIP": save_only_clip,
    "diversity": save_only_clip,
    "aesthetic": save_aesthetic,
    "HPSv2": save_hps,
    "clap": save_clap,
    "OCR": save_ocr,
    "GenEval": save_geneval,
    "ImageReward": save_image_reward,
    "HPSv3": save_hpsv3,
    "VideoAlign": save_video_align,
    "vlm": save_vlm,
}
