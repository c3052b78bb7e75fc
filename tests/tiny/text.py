"""Tokenizers built from scratch: real classes, a vocabulary of the few words that tests say, single letters for the rest."""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import CLIPTokenizer, GemmaTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer, T5Tokenizer

SAID = """a an the of on in at and two three red green blue yellow circle square triangle cat dog hill sunset horse mars photo painting
left right above below low quality blurry"""
SYSTEM = """Describe image by detailing color shape size texture quantity text spatial relationships objects background key features
input ( ), then explain how user 's instruction should alter or modify Generate new that meets requirements while maintaining consistency
with original where appropriate system assistant Picture You are helpful video following aspects main content theme Actions events
behaviors temporal physical movement changes environment light style atmosphere camera angles movements transitions used AI reasons about
descriptions give structured responses focusing object attribution actions without speculation designed to generate superior images
degree alignment based textual prompts Prompt Start The"""
"""What pipelines put in front of prompts. They cut it off by a fixed count of tokens: each word must be one, as in the real vocabulary."""
WORDS = SAID.split()
LETTERS = [chr(c) for c in range(33, 127)]
PAIR = tuple[str, str]

QWEN_TEMPLATE = """{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking %}<think>

</think>

{% endif %}{% endif %}"""
MISTRAL_TEMPLATE = """{{- bos_token }}{%- for message in messages %}\
{%- set role = {"system": "SYSTEM_PROMPT", "user": "INST"}[message.role] %}\
[{{- role }}]{%- for part in message.content %}{{- part.text }}{%- endfor %}[/{{- role }}]{%- endfor %}"""


def _learn(words: Iterable[list[str]]) -> dict[PAIR, int]:
    """Byte pairs merged from the left along each word. `tokenizers.BpeTrainer` learns other ones in every process."""
    merges: dict[PAIR, int] = {}
    for parts in words:
        while len(parts) > 1:
            pairs = list(zip(parts, parts[1:], strict=False))
            pair = min(pairs, key=lambda p: merges.get(p, len(merges)))  # the oldest that is known, or the first
            merges.setdefault(pair, len(merges))
            k = pairs.index(pair)
            parts = [*parts[:k], "".join(pair), *parts[k + 2 :]]
    return merges


@lru_cache
def _vocabulary(space: str, first: Sequence[str], letters: Sequence[str]) -> tuple[dict[str, int], list[PAIR]]:
    """(ids, merges) of a tokenizer that writes a space as this letter in front of its word."""
    words = [list(space * spaced + word) for word in (*WORDS, *SYSTEM.split()) for spaced in (0, 1)]
    merges = _learn([*words, [space] * 8])  # HunyuanVideo's prompt has the indentation of its source
    tokens = dict.fromkeys([*first, *letters, *("".join(m) for m in merges)])
    return {t: i for i, t in enumerate(tokens)}, list(merges)


def _bytes(*first: str) -> dict[str, Any]:
    """Byte-level BPE, as GPT-2 has it: every byte is some printable letter, the space is U+0120."""
    vocabulary, merges = _vocabulary("\u0120", first, tuple(sorted(pre_tokenizers.ByteLevel.alphabet())))
    return {"vocab": dict(vocabulary), "merges": merges}


@lru_cache
def clip_tokenizer() -> CLIPTokenizer:
    """<|endoftext|> has the highest id, as in the real one."""
    merges = _learn([*word[:-1], word[-1] + "</w>"] for word in WORDS)
    tokens = [*LETTERS, *(c + "</w>" for c in LETTERS), *("".join(m) for m in merges), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={t: i for i, t in enumerate(dict.fromkeys(tokens))}, merges=list(merges), model_max_length=77)


@lru_cache
def t5_tokenizer() -> T5Tokenizer:
    """Unigram: the words, then single characters; word starts marked by U+2581."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -4.0)]
    pieces += [("\u2581" + w, -5.0) for w in WORDS] + [(c, -10.0) for c in LETTERS]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)


def qwen_tokenizer() -> Qwen2Tokenizer:
    """With the chat template of Qwen3, less its tools."""
    vision = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    return Qwen2Tokenizer(
        **_bytes("<|endoftext|>"),
        eos_token="<|im_end|>",
        extra_special_tokens=["<|im_start|>", "<think>", "</think>", *vision],
        chat_template=QWEN_TEMPLATE,
        model_max_length=4096,
    )


def gemma_tokenizer() -> GemmaTokenizer:
    """BPE over whole texts, spaces written as U+2581; unknown letters fall back to bytes; <bos> in front."""
    special = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_image>", "<end_of_image>", "<image_soft_token>")
    vocabulary, merges = _vocabulary("\u2581", (*special, *(f"<0x{i:02X}>" for i in range(256))), ("\u2581", "\n", *LETTERS))
    return GemmaTokenizer(
        vocab=dict(vocabulary), merges=merges, add_bos_token=True, extra_special_tokens=list(special[5:]), model_max_length=1024
    )


def _fast(special: Sequence[str], prefix: str, **kwargs: Any) -> PreTrainedTokenizerFast:
    """A tokenizer without a class of its own; `prefix` is put in front of every text."""
    parts = _bytes(*special)
    tokenizer = Tokenizer(models.BPE(**parts))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    used = [(t, parts["vocab"][t]) for t in prefix.split()]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{prefix} $A", pair=f"{prefix} $A $B", special_tokens=used)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **kwargs)


def llama_tokenizer() -> PreTrainedTokenizerFast:
    bos, eos = "<|begin_of_text|>", "<|eot_id|>"
    return _fast((bos, eos), bos, bos_token=bos, eos_token=eos, model_max_length=512)


def llava_tokenizer() -> PreTrainedTokenizerFast:
    bos, eos, pad = "<|begin_of_text|>", "<|eot_id|>", "<pad>"
    first = (bos, eos, pad, "<image>", "<|end_header_id|>")
    return _fast(first, bos, bos_token=bos, eos_token=eos, pad_token=pad, model_max_length=512)


def glm_tokenizer() -> PreTrainedTokenizerFast:
    end = "<|endoftext|>"
    return _fast((end, "[gMASK]", "<sop>"), "[gMASK] <sop>", eos_token=end, pad_token=end, padding_side="left", model_max_length=1024)


def glm_image_tokenizer() -> PreTrainedTokenizerFast:
    start, end, pad, named = "<sop>", "<eop>", "<pad>", {"image": "<|image|>", "grid_bos": "<|grid|>", "grid_eos": "<|/grid|>"}
    return _fast(
        (start, end, pad, *named.values()), start, bos_token=start, eos_token=end, pad_token=pad, padding_side="left",
        model_max_length=1024, extra_special_tokens={f"{name}_token": token for name, token in named.items()},
        chat_template="{%- for m in messages %}{% for c in m.content %}{% if c.type == 'image' %}<|image|>{% else %}{{ c.text }}"
        "{% endif %}{% endfor %}{% endfor %}")  # fmt: skip


def mistral_tokenizer() -> PreTrainedTokenizerFast:
    named = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    roles = ("[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[IMG]", "[IMG_BREAK]", "[IMG_END]")
    return _fast((*named.values(), *roles), "<s>", **named, padding_side="left", chat_template=MISTRAL_TEMPLATE, model_max_length=4096)
