"""Rows and conditions of the tests of the cache."""

from pathlib import Path

import torch
from PIL import Image

from flow_factory.types import Cond, Row


def fake_encoder(calls: list[str]):
    def encode(row: Row) -> Cond:
        calls.append(row.prompt)
        return {"prompt_embeds": torch.full((1, 3), float(len(row.prompt))), "note": row.prompt}

    return encode


def rows_of(*prompts: str) -> list[Row]:
    return [Row(k, p) for k, p in enumerate(prompts)]


def raw(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(raw(a), raw(b))
    if isinstance(a, Image.Image):
        return b.mode == "RGB" and a.size == b.size and a.tobytes() == b.tobytes()
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    return type(a) is type(b) and a == b


def shard_of(folder: Path) -> Path:
    """The one that there is."""
    (shard,) = folder.rglob("*.shard")
    return shard
