"""Tiny vision-language models of rewards, with random weights."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from tests.tiny.drawn import drawn
from tests.tiny.encoders import qwen25_vl, qwen_processor
from tests.tiny.text import qwen_tokenizer

CHAT = """{%- for message in messages %}<|im_start|>{{ message.role }}
{% for part in message.content %}{% if part.type == 'text' %}{{ part.text }}{% else %}<|vision_start|><|{{ part.type }}_pad|><|vision_end|>\
{% endif %}{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def save_vlm(folder: Path) -> dict[str, str]:
    """A Qwen2.5-VL as a judge, whose head is sharper than a random one, so that answers differ."""
    model, processor = qwen25_vl(), qwen_processor()
    with torch.no_grad():
        model.lm_head.weight.mul_(4)
    model.save_pretrained(folder)
    processor.chat_template = CHAT
    processor.save_pretrained(folder)
    return {"model_name_or_path": str(folder)}


def qwen2_vl_config(words: int) -> Qwen2VLConfig:
    """Of two layers each, in real patches."""
    special = {"image_token_id": "image_pad", "video_token_id": "video_pad"}
    rope = {"mrope_section": [2, 2, 4], "rope_type": "default", "rope_theta": 1e6}
    text = {"vocab_size": words, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
            "intermediate_size": 48, "bos_token_id": 1, "eos_token_id": 1, "rope_parameters": rope}  # fmt: skip
    vision = {"depth": 2, "embed_dim": 32, "num_heads": 2, "hidden_size": 32, "mlp_ratio": 2}
    ids = {name: qwen_tokenizer().convert_tokens_to_ids(f"<|{token}|>") for name, token in special.items()}
    return Qwen2VLConfig(text_config=text, vision_config=vision, **ids)


def _save_qwen2_vl(folder: Path, instruction: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The keys of an entry, and the tensors of a Qwen2-VL with three more words under the names of transformers 4."""
    processor = qwen_processor()
    processor.chat_template = CHAT
    processor.save_pretrained(folder / "base")
    words = len(processor.tokenizer) + instruction.count("<|")
    qwen2_vl_config(len(processor.tokenizer)).save_pretrained(folder / "base")
    (folder / "instruction.txt").write_text(instruction)
    tensors: dict[str, Tensor] = {}
    for name, tensor in Qwen2VLForConditionalGeneration(qwen2_vl_config(words)).state_dict().items():
        old = name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")
        tensors[old] = drawn(old, *tensor.shape) + (1.0 if "norm" in name or "ln_q.weight" in name else 0.0)
    return {"processor_name_or_path": str(folder / "base"), "instruction": str(folder / "instruction.txt")}, tensors


def save_hpsv3(folder: Path) -> dict[str, str]:
    """The one file of weights, and what of Qwen2-VL-7B is read."""
    keys, tensors = _save_qwen2_vl(folder, "How good is this for {text_prompt}?\nIt is <|Reward|>\nEND\n")
    for k, (out, width) in {0: (24, 32), 3: (16, 24), 5: (2, 16)}.items():
        tensors |= {f"rm_head.{k}.weight": drawn(f"rm{k}", out, width), f"rm_head.{k}.bias": drawn(f"rm{k}b", out)}
    save_file(tensors, folder / "HPSv3.safetensors")
    return keys | {"model_name_or_path": str(folder / "HPSv3.safetensors")}


def save_video_align(folder: Path) -> dict[str, str]:
    """As PEFT's state of a LoRA on all linear layers of the language model, beside trained vision, words and head."""
    keys, tensors = _save_qwen2_vl(folder, "Looks: <|VQ_reward|>\nMotion: <|MQ_reward|>\nShows {text_prompt}: <|TA_reward|>\nEND\n")
    wrapped = {"rm_head.weight": drawn("rm", 1, 32)}
    for name, tensor in tensors.items():
        stem, _, kind = name.rpartition(".")
        if name.startswith("model.layers.") and "proj" in stem:
            wrapped[f"{stem}.base_layer.{kind}"] = tensor
            if kind == "weight":
                wrapped[f"{stem}.lora_A.default.weight"] = drawn(f"{name}.A", 4, tensor.shape[1])
                wrapped[f"{stem}.lora_B.default.weight"] = drawn(f"{name}.B", tensor.shape[0], 4) * 0.05
        else:
            wrapped[name] = tensor
    torch.save({f"base_model.model.{name}": tensor for name, tensor in wrapped.items()}, folder / "model.pth")
    return keys | {"model_name_or_path": str(folder / "model.pth")}
