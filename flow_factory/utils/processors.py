"""Text and image processors of checkpoints on machines without torchvision, which transformers requires for some of them.

The pipelines do not need it: FLUX.2 passes only text to its processor, and those of the Qwen-VL kind get images but no videos.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoTokenizer
from transformers.processing_utils import ProcessorMixin
from transformers.utils import is_torchvision_available

WITH_VIDEO = ("Qwen2VLProcessor", "Qwen2_5_VLProcessor", "Qwen3VLProcessor")
"""Processors with a part for videos, which needs torchvision."""


def substitutes(name: str, index: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parts to pass to `from_pretrained`, and parts to register after it.

    Args:
        name: the folder or hub name of a pipeline.
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
        elif kind in WITH_VIDEO:
            place, options = _place(name, part)
            passed[part] = without_video(getattr(transformers, kind)).from_pretrained(*place, **options)
    return passed, later


def _place(name: str, part: str) -> tuple[tuple[str], dict[str, str]]:
    return ((str(Path(name) / part),), {}) if Path(name).is_dir() else ((name,), {"subfolder": part})


def without_video(base: type) -> Any:
    """The processor without its video part. transformers reads the parts of a processor from the parameter names of `__init__`."""

    def __init__(self: Any, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None, **kwargs: Any) -> None:
        for kind in ("image_pad", "video_pad", "vision_start", "vision_end"):
            name = f"{kind.removesuffix('_pad')}_token"
            setattr(self, name, f"<|{kind}|>")
            setattr(self, f"{name}_id", tokenizer.convert_tokens_to_ids(f"<|{kind}|>"))
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    return type(base.__name__, (base,), {"__init__": __init__, "__module__": base.__module__})
