"""Text and picture processors of checkpoints on machines without torchvision, which transformers wants for two of them.

Neither needs it for what the pipelines do: FLUX.2 hands its processor text alone, Qwen-Image-Edit pictures but no videos.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoTokenizer
from transformers.processing_utils import ProcessorMixin
from transformers.utils import is_torchvision_available


def substitutes(name: str, index: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parts for `from_pretrained`, and parts to register once it has returned.

    Args:
        name: folder or hub name of a pipeline.
        index: its model_index.json.
    """
    if is_torchvision_available():
        return {}, {}
    passed: dict[str, Any] = {}
    later: dict[str, Any] = {}
    for part, entry in index.items():
        kind = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
        if kind == "PixtralProcessor":  # as an argument, diffusers would take the tokenizer for the wrong class
            passed[part], later[part] = None, AutoTokenizer.from_pretrained(*_place(name, part)[0], **_place(name, part)[1])
        elif kind == "Qwen2VLProcessor":
            place, options = _place(name, part)
            passed[part] = without_video(transformers.Qwen2VLProcessor).from_pretrained(*place, **options)
    return passed, later


def _place(name: str, part: str) -> tuple[tuple[str], dict[str, str]]:
    return ((str(Path(name) / part),), {}) if Path(name).is_dir() else ((name,), {"subfolder": part})


def without_video(base: type) -> Any:
    """The processor with no video part: transformers takes a processor's parts from the names of `__init__`'s parameters."""

    def __init__(self: Any, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None, **kwargs: Any) -> None:
        for kind in ("image", "video"):
            token = f"<|{kind}_pad|>"
            setattr(self, f"{kind}_token", token)
            setattr(self, f"{kind}_token_id", tokenizer.convert_tokens_to_ids(token))
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    return type(base.__name__, (base,), {"__init__": __init__, "__module__": base.__module__})
