"""FLUX.2-klein KV: an edit whose pictures are read once, in the first step, and kept as keys and values."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers.models.transformers.transformer_flux2 import Flux2KVCache
from torch import Tensor

from flow_factory.models.flux2 import Flux2Klein
from flow_factory.models.named import Named


class Flux2KleinKV(Named):
    """https://huggingface.co/black-forest-labs/FLUX.2-klein-9b-kv: four steps, without guidance."""

    pipeline = "diffusers.pipelines.flux2.pipeline_flux2_klein_kv:Flux2KleinKVPipeline"
    also_loads = ("Flux2KleinPipeline",)
    encoders = ("text_encoder",)
    images = (0, 10)
    cfg = None
    published, published_config = Flux2Klein.published_as("9B")

    def velocity(self, *args: Any, **kwargs: Any) -> Tensor:
        """Keeps the cache that the pipeline empties when it returns: blocks that are computed again in the backward read it later."""
        with _kept():
            return super().velocity(*args, **kwargs)


@contextmanager
def _kept() -> Iterator[None]:
    clear = Flux2KVCache.clear
    Flux2KVCache.clear = lambda self: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        Flux2KVCache.clear = clear  # type: ignore[method-assign]
