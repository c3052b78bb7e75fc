"""Krea 2: Raw, which is made to be trained, and Turbo, which draws in 8 steps without guidance."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from flow_factory.models.diffusers import Encoded
from flow_factory.models.named import Named
from flow_factory.models.qwen_image import QwenImage
from flow_factory.types import Cond, Row


class Krea2(Named):
    """https://huggingface.co/krea/Krea-2-Raw, under the Krea 2 Community License.

    The pipeline adds `guidance_scale` times what the prompt changes: 0 turns guidance off. It pads each prompt to 512 tokens of 12 hidden
    states, 31 MB in 16 bits: a row keeps those of its real tokens, and zeros stand in for the padding, which attention leaves out.
    """

    pipeline = "diffusers.pipelines.krea2.pipeline_krea2:Krea2Pipeline"
    encoders = ("text_encoder",)
    pads_prompts = True
    unguided = 0.0
    published: ClassVar[Mapping[str, float]] = {"transformer": 12.82e9, "text_encoder": 4.438e9, "vae": 0.127e9}
    tile: ClassVar[int] = QwenImage.tile

    @classmethod
    def decoding_of(cls, height: int, width: int, call: Mapping[str, Any]) -> float:
        return QwenImage.decoding_of(height, width, call)

    @classmethod
    def embedded(cls, shape: Mapping[str, Any], tokens: int) -> int:
        return tokens * int(shape["num_text_layers"] * shape["text_hidden_dim"])

    def encode(self, row: Row, call: Mapping[str, Any]) -> Cond:
        cond = super().encode(row, call)
        return cond | {"encoded": {name: [(states[mask], mask) for states, mask in calls] for name, calls in cond["encoded"].items()}}

    def shaping(self, cond: Cond) -> Cond:
        masks = {name: [mask for _, mask in calls] for name, calls in cond["encoded"].items()}
        return cond | {"encoded": masks}

    def _given(self, cond: Cond, n: int) -> Encoded:
        padded = {name: [(_padded(states, mask), mask) for states, mask in calls] for name, calls in cond["encoded"].items()}
        return super()._given(cond | {"encoded": padded}, n)


def _padded(states: Tensor, mask: Tensor) -> Tensor:
    """(1, tokens, layers, width), with zeros where the mask is false, of the (k, layers, width) where it is true."""
    whole = states.new_zeros(*mask.shape, *states.shape[1:])
    return whole.masked_scatter(mask[..., None, None], states)  # an assignment by the mask would wait for the GPU
