"""What must not be written down: values under keys such as `api_key`, and text that shows itself to be a key."""

import re
from typing import Any

MASK = "***"
_WORDS = {
    "password", "passwd", "passphrase", "pwd", "secret", "secrets", "authorization", "credential", "credentials", "bearer", "apikey",
    "cookie",
}  # fmt: skip
_OF_KEYS = {
    "api", "access", "private", "secret", "auth", "account", "subscription", "license", "signing", "encryption", "storage", "ssh",
    "hf", "openai", "client",
}  # fmt: skip
"""Words before `key`: a `sort_key` is none."""
_OF_TOKENS = {
    "pad", "eos", "bos", "unk", "sep", "mask", "cls", "image", "video", "audio", "yes", "no", "stop", "start", "end", "per",
    "special", "positive", "negative", "true", "false", "good", "bad", "score", "answer", "think", "trigger", "placeholder",
}  # fmt: skip
"""Words before `token` by which it is one of a text."""
_NO_SECRET = {
    "path", "file", "folder", "dir", "name", "env", "variable", "length", "type", "count", "size", "id", "ids",
}  # fmt: skip
"""Last words of keys about a secret that hold none."""
_SHOWN = re.compile(
    r"\b(sk-[\w-]{16,}|hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|AKIA[0-9A-Z]{16}|xox[abps]-[\w-]{10,}"
    r"|[Bb]earer\s+[\w.~+/-]{8,}=*)"
)
_IN_URL = re.compile(r"(?<=://)[^/\s@]+(?=@)|(?<=[?&])((?:api_?key|token|access_token|password|secret|key)=)[^&\s]+", re.IGNORECASE)


def is_secret(key: str) -> bool:
    """Whether what stands under a key is a secret: api_key, hf_token, Authorization, apiKey, ... but not pad_token or max_tokens."""
    words = re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])", key)
    *others, last = [word.lower() for word in words] or [""]
    if last in _NO_SECRET:
        return False
    if last == "token":
        return not set(others) & _OF_TOKENS
    return bool({last, *others} & _WORDS) or (last in ("key", "keys") and bool(set(others) & _OF_KEYS))


def is_masked(text: str) -> bool:
    """Whether a secret of the text was masked."""
    return text == MASK or f"://{MASK}@" in text or f"={MASK}" in text


def masked(value: Any, secret: bool = False) -> Any:
    """The value with `***` in the place of secrets; what came from the environment is text with `${NAME}`, and stays.

    Args:
        secret: whether it stands under a key of a secret.
    """
    if isinstance(value, dict):
        return {key: masked(inner, secret or is_secret(str(key))) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(masked(inner, secret) for inner in value)
    if hasattr(value, "quoted") or value is None or isinstance(value, bool):
        return value
    if secret:
        return MASK
    return masked_text(value) if isinstance(value, str) else value


def masked_text(text: str) -> str:
    """Text without what shows itself to be a secret: keys of known forms, and names and passwords in an address."""
    return _IN_URL.sub(lambda match: f"{match[1] or ''}{MASK}", _SHOWN.sub(MASK, text))
