"""Which setting fits which card: the tables of guidance/hardware.md, by the estimates of `ff-train --check`.

    python benchmarks/hardware.py

Loads nothing and needs no GPU: transformers are built without weights, from the configs of the published checkpoints.
"""

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from flow_factory.config import RunConfig, load_config
from flow_factory.memory.estimate import estimate
from flow_factory.memory.parts import Part, in_main_memory, peak
from flow_factory.memory.room import CARDS, ROOM
from flow_factory.memory.sizes import shape_of
from flow_factory.models import MODELS

ROOT = Path(__file__).parent.parent
LORA = (
    "flux1", "flux1_kontext", "flux2_klein", "flux2_t2i", "z_image", "qwen_image", "qwen_image_edit_plus", "sd3_5", "wan21_t2v",
    "wan22_t2v", "ltx2_t2av",
)  # fmt: skip
FULL = ("flux1", "flux2_klein", "flux2_t2i", "z_image", "qwen_image", "sd3_5", "wan21_t2v", "wan22_t2v", "ltx2_t2av")
"""Names of examples."""
ALONE = (
    "num_processes=1", "config_file=null", "train.enable_gradient_checkpointing=true", "train.per_device_batch_size=1",
    "eval.per_device_batch_size=1", "train.offload_samples_to_cpu=true", "model.offload_idle=true",
)  # fmt: skip
ON_ONE = {
    "bf16": (),
    "fp8": ("model.layerwise_casting=fp8_e4m3",),
    "8 bits": ("model.quantization=bnb_8bit",),
    "4 bits": ("model.quantization=bnb_4bit",),
    "offload_blocks": ("model.offload_blocks=true",),
}
TOGETHER = (
    "num_processes=8", "train.enable_gradient_checkpointing=true", "model.offload_idle=true", "model.master_weight_dtype=fp32",
    "train.offload_samples_to_cpu=true",
)  # fmt: skip
ON_EIGHT = {name: (f"config_file=examples/launch/{name}.yaml",) for name in (
    "multi_gpu", "deepspeed_zero2", "deepspeed_zero3", "fsdp2", "fsdp2_offload",
)}  # fmt: skip


@cache
def transformer(example: str) -> tuple[Any, dict[str, float], Any]:
    """(family, parameters by part, transformer without weights) of an example's checkpoint."""
    model = load_config(ROOT / f"examples/grpo/lora/{example}.yaml").model
    family = MODELS[model.model_type]
    name = model.model_name_or_path
    return family, dict(family.published_as(name)[0]), shape_of(family, model.target_components[0], None, name)


def parts_of(kind: str, example: str, *overrides: str) -> tuple[RunConfig, list[Part]]:
    """An example's config and its estimate."""
    config = load_config(ROOT / f"examples/grpo/{kind}/{example}.yaml", overrides)
    return config, estimate(config, *transformer(example))


def cell(config: RunConfig, parts: list[Part]) -> str:
    """GB of a GPU and the smallest card for it, that for encoding where it is larger; GB of all processes in main memory, if it is much."""
    most, first = (peak([p for p in parts if (p.phase == "encoding") == encoding]) for encoding in (False, True))
    encoded = f", encoding {card(first)}" if first > most and card(first) != card(most) else ""
    host = in_main_memory(parts) * config.num_processes
    return f"{most:.1f} ({card(most)}{encoded})" + (f", main memory {host:.0f}" if host >= 10 else "")


def card(gb: float) -> str:
    return next((f"{size} GB" for size in CARDS if gb < ROOM * size), "none")


def table(kind: str, examples: tuple[str, ...], always: tuple[str, ...], settings: dict[str, tuple[str, ...]]) -> Iterator[str]:
    """Lines of markdown: an example each, a column a setting."""
    yield f"| example | transformer | {' | '.join(settings)} |"
    yield "|" + "---|" * (len(settings) + 2)
    for example in examples:
        family, parameters, _ = transformer(example)
        size = " + ".join(f"{parameters[c] / 1e9:.3g} B" for c in family.components if parameters.get(c))
        cells = " | ".join(cell(*parts_of(kind, example, *always, *keys)) for keys in settings.values())
        yield f"| [{example}](../examples/grpo/{kind}/{example}.yaml) | {size} | {cells} |"


def tables() -> tuple[str, str]:
    """(LoRA on one GPU, full fine-tuning on eight)."""
    one, eight = table("lora", LORA, ALONE, ON_ONE), table("full", FULL, TOGETHER, ON_EIGHT)
    return "\n".join(one), "\n".join(eight)


def main() -> None:
    os.chdir(ROOT)  # where the examples' launcher files are
    print(*tables(), sep="\n\n")


if __name__ == "__main__":
    main()
