"""What a run that starts from a LoRA has of it, where its YAML does not say it: rank, alpha, layers, and whether it is a DoRA."""

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flow_factory.checkpoints.checkpoint import CheckpointError, model_kind
from flow_factory.checkpoints.lora_file import Lora, kind_of_layer
from flow_factory.checkpoints.lora_names import by_module_names
from flow_factory.checkpoints.model_files import lora_at
from flow_factory.config import RunConfig
from flow_factory.config.rules import broken
from flow_factory.models.base import ModelAdapter
from flow_factory.policy.targets import components_of, linear_names

RANK, ALPHA = ("lora_rank", "rank_pattern"), ("lora_alpha", "alpha_pattern", "use_rslora")


def with_form(config: RunConfig, path: Path | None, sketch: ModelAdapter) -> tuple[RunConfig, str | None]:
    """The config with the form of the LoRA at `path` in the keys that were not written, and what to say of it.

    Args:
        path: what `model.resume_path` chose; None or full weights change nothing.

    Raises:
        UserError: the file is damaged, or of another model; or the checkpoint has no such component.
    """
    model = config.model
    if path is None or model.finetune_type != "lora" or not path.exists() or model_kind(path) != "lora":
        return config, None
    written = model.model_fields_set
    loras, names = {}, {}
    for component in components_of(sketch, model):
        module = sketch.field.bare[component]
        file, saved = lora_at(path, component)
        loras[component], names[component] = by_module_names(str(file), saved, module), linear_names(module)
    found: dict[str, Any] = {}
    if not written & {*RANK}:
        found |= _shared({c: {layer: lora.rank(layer) for layer in lora.layers} for c, lora in loras.items()}, *RANK)
    if not written & {*RANK, *ALPHA}:
        rooted = all(lora.rslora for lora in loras.values())
        found |= _shared({c: {layer: _alpha(lora, layer, rooted) for layer in lora.layers} for c, lora in loras.items()}, *ALPHA[:2])
        found["use_rslora"] = rooted
    if "target_modules" not in written:
        found["target_modules"] = tuple(e for c, lora in loras.items() for e in endings(lora, names[c], c if len(loras) > 1 else ""))
    if "use_dora" not in written:
        found["use_dora"] = any(lora.dora for lora in loras.values())
    changed = {key: value for key, value in found.items() if value != getattr(model, key)}
    if not changed:
        return config, None
    summary = ", ".join(f"{key}: {_show(value)}" for key, value in changed.items())
    formed = config.model_copy(update={"model": model.model_copy(update=found)})
    for problem in broken(formed):
        raise CheckpointError(f"{'.'.join(map(str, problem.keys))}: as {path} has it: {problem.text}")
    return formed, f"model: as {path} has it: {summary}"


def endings(lora: Lora, names: list[str], component: str = "") -> list[str]:
    """The shortest entries of `target_modules` that choose the layers of a LoRA, and no other.

    Args:
        names: of all linear layers.
        component: with which the entries begin, if there are several.
    """
    layers, before = {*lora.layers}, f"{component}." if component else ""
    if layers == {*names}:
        return [f"{before}all"]
    found: dict[str, None] = {}
    for layer in lora.layers:
        kind = kind_of_layer(layer)
        alike = {name for name in names if name == kind or name.endswith(f".{kind}")}
        found[before + (kind if alike <= layers else layer)] = None
    return list(found)


def _shared(values: Mapping[str, Mapping[str, float]], key: str, pattern: str) -> dict[str, Any]:
    """The most common value as the key, and the others as a pattern by full names."""
    every = [value for of in values.values() for value in of.values()]
    common = next((value for value, _ in Counter(every).most_common() if isinstance(value, int)), None)
    if common is None:  # `lora_alpha` is a whole number
        common = 1
    others = {f"^{layer}": value for of in values.values() for layer, value in of.items() if value != common}
    return {key: common, pattern: others}


def _alpha(lora: Lora, layer: str, rooted: bool) -> float:
    """Of a layer; a whole number where it is one but for rounding."""
    alpha = lora.scale_of(layer) * (math.sqrt(lora.rank(layer)) if rooted else lora.rank(layer))
    return round(alpha) if abs(alpha - round(alpha)) < 1e-6 * alpha else alpha


def _show(value: Any) -> str:
    text = f"[{', '.join(value)}]" if isinstance(value, tuple) else str(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
