"""Dropout of a LoRA whose masks are a pure function of a key: recomputed blocks and resumed runs draw the same ones."""

import hashlib
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from flow_factory.policy.lora import lora_layers


class Masks:
    """The key of the masks that are drawn now; None: nothing is dropped, as in rollouts and evaluations."""

    def __init__(self) -> None:
        self.key: tuple[int, ...] | None = None

    @contextmanager
    def drawn(self, *key: int) -> Iterator[None]:
        """Around a forward and its backward, which may run the forward again."""
        self.key = key
        try:
            yield
        finally:
            self.key = None


class KeyedDropout(nn.Module):
    """Drops a share of a layer's inputs, and scales the rest up to the same mean."""

    def __init__(self, share: float, layer: int, masks: Masks):
        super().__init__()
        self.share, self.layer, self.masks = share, layer, masks

    def forward(self, x: Tensor) -> Tensor:
        key = self.masks.key
        if key is None:
            return x
        words = hashlib.sha256(struct.pack(f">{1 + len(key)}q", self.layer, *key)).digest()
        numbers = torch.Generator(x.device).manual_seed(int.from_bytes(words[:8], "big") >> 1)
        kept = torch.rand(x.shape, generator=numbers, device=x.device) >= self.share
        return x * kept / (1 - self.share)


def key_dropout(models: Iterable[nn.Module], share: float) -> Masks:
    """Replaces the dropout of peft, which draws from the program's stream of random numbers, and only while a model is in training mode."""
    masks = Masks()
    for number, layer in enumerate(lora_layers(models)):
        for name in layer.lora_dropout if share else ():
            layer.lora_dropout[name] = KeyedDropout(share, number, masks)
    return masks
