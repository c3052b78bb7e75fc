"""Tokenizers built from scratch: real classes, a vocabulary of the few words that tests say, single letters for the rest."""

from functools import lru_cache

from transformers import CLIPTokenizer, T5Tokenizer

WORDS = [
    "a",
    "an",
    "the",
    "of",
    "on",
    "in",
    "at",
    "and",
    "two",
    "three",
    "red",
    "green",
    "blue",
    "yellow",
    "circle",
    "square",
    "triangle",
    "cat",
    "dog",
    "hill",
    "sunset",
    "horse",
    "mars",
    "photo",
    "painting",
    "left",
    "right",
    "above",
    "below",
    "low",
    "quality",
    "blurry",
]
LETTERS = [chr(c) for c in range(33, 127)]


@lru_cache
def clip_tokenizer() -> CLIPTokenizer:
    """Byte pairs merged from the left along each word; <|endoftext|> has the highest id, as in the real one."""
    merges: dict[tuple[str, str], None] = {}
    for word in WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            parts = _merge_first(parts, merges)
    tokens = [*LETTERS, *(c + "</w>" for c in LETTERS), *("".join(m) for m in merges), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={t: i for i, t in enumerate(dict.fromkeys(tokens))}, merges=list(merges), model_max_length=77)


def _merge_first(parts: list[str], merges: dict[tuple[str, str], None]) -> list[str]:
    """Applies the oldest known merge, or learns that of the first two parts."""
    pairs = list(zip(parts, parts[1:], strict=False))
    pair = next((m for m in merges if m in pairs), pairs[0])
    merges[pair] = None
    k = pairs.index(pair)
    return [*parts[:k], "".join(pair), *parts[k + 2 :]]


@lru_cache
def t5_tokenizer() -> T5Tokenizer:
    """Unigram: the words, then single characters; word starts marked by U+2581."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -4.0)]
    pieces += [("\u2581" + w, -5.0) for w in WORDS] + [(c, -10.0) for c in LETTERS]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)
