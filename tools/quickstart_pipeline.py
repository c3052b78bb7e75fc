"""The tiny FLUX.1 of the quick start, untrained: stock classes, and tokenizers that know the words of the shapes world."""

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, PreTrainedTokenizerFast, T5Config, T5EncoderModel, T5Tokenizer

WORDS = [
    "a", "and", "two", "three", "four", "left", "right", "above", "below", "of", "red", "green", "blue",
    "yellow", "circle", "square", "triangle", "circles", "squares", "triangles", "the", "on", "to", "one", "picture", "background", "white",
]  # fmt: skip


def clip_tokenizer() -> CLIPTokenizer:
    """Byte pairs merged along the words of the world: one token a word."""
    merges, vocab = [], {}
    letters = "abcdefghijklmnopqrstuvwxyz"
    for c in [*letters, *(c + "</w>" for c in letters)]:
        vocab[c] = len(vocab)
    for word in WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            pair = next((p for p in merges for i in range(len(parts) - 1) if (parts[i], parts[i + 1]) == p), None)
            if pair is None:
                pair = (parts[0], parts[1])
                merges.append(pair)
                vocab.setdefault("".join(pair), len(vocab))
            i = next(i for i in range(len(parts) - 1) if (parts[i], parts[i + 1]) == pair)
            parts[i : i + 2] = ["".join(pair)]
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocab[special] = len(vocab)
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=32)
    wrong = [w for w in WORDS if len(tokenizer.tokenize(w)) != 1 or tokenizer.tokenize(w)[0] != w + "</w>"]
    print("words of more than one CLIP token:", wrong)
    return tokenizer


def t5_tokenizer() -> PreTrainedTokenizerFast:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -8.0)]
    pieces += [("▁" + w, -3.0) for w in WORDS] + [(c, -10.0) for c in "abcdefghijklmnopqrstuvwxyz"]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)


def build(vae: AutoencoderKL, width: int, heads: int, double: int, single: int) -> FluxPipeline:
    clip_tok, t5_tok = clip_tokenizer(), t5_tokenizer()
    clip = CLIPTextModel(CLIPTextConfig(
        vocab_size=len(clip_tok), hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=32, projection_dim=64, bos_token_id=clip_tok.bos_token_id, eos_token_id=clip_tok.eos_token_id,
        pad_token_id=clip_tok.pad_token_id))  # fmt: skip
    t5 = T5EncoderModel(T5Config(
        vocab_size=len(t5_tok), d_model=width, d_kv=16, d_ff=2 * width, num_layers=2, num_heads=heads, relative_attention_num_buckets=16,
        relative_attention_max_distance=32, dropout_rate=0.0, feed_forward_proj="gated-gelu", is_encoder_decoder=False, use_cache=False,
        pad_token_id=0, eos_token_id=1, decoder_start_token_id=0))  # fmt: skip
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=4 * vae.config.latent_channels, num_layers=double, num_single_layers=single, attention_head_dim=16,
        num_attention_heads=heads, joint_attention_dim=width, pooled_projection_dim=64, guidance_embeds=False, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    for linear in (transformer.time_text_embed.text_embedder.linear_1, transformer.context_embedder):
        linear.weight.data.mul_(3)  # the text is quiet at first and would be learned late
    torch.nn.init.zeros_(transformer.proj_out.weight)
    torch.nn.init.zeros_(transformer.proj_out.bias)
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15)
    return FluxPipeline(
        scheduler=scheduler, vae=vae, text_encoder=clip, tokenizer=clip_tok, text_encoder_2=t5, tokenizer_2=t5_tok, transformer=transformer
    )
