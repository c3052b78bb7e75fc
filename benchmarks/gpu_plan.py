"""The variants of `benchmarks/gpu.py`, and which of them fit the time that is left."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

CHECKPOINTING = "train.enable_gradient_checkpointing"
SETTINGS: Mapping[str, tuple[tuple[str, ...], float]] = {
    "eager": ((), 0.0),
    "compile": (("model.compile=true",), 1.5),
    "auto": ((f"{CHECKPOINTING}=auto",), 0.1),
    "recompute": ((f"{CHECKPOINTING}=true",), 0.0),
    "keep": ((f"{CHECKPOINTING}=false",), 0.0),
    "half": ((f"{CHECKPOINTING}={{fraction: 0.5}}",), 0.0),
    "float8": (("model.quantization=torchao_float8_dynamic",), 0.5),
    "int8": (("model.quantization=torchao_int8_dynamic",), 0.5),
    "flash": (("model.attn_backend=flash",), 0.0),
    "flash3": (("model.attn_backend=_flash_3_hub",), 0.2),
    "cudnn": (("model.attn_backend=_native_cudnn",), 0.0),
    "native-flash": (("model.attn_backend=_native_flash",), 0.0),
    "efficient": (("model.attn_backend=_native_efficient",), 0.3),
    "rollout-auto": (("train.rollout_batch_size=auto",), 0.2),
    "rollout-16": (("train.rollout_batch_size=16",), 0.0),
    "rollout-32": (("train.rollout_batch_size=32",), 0.0),
    "batch-16": (("train.per_device_batch_size=16",), 0.0),
    "batch-32": (("train.per_device_batch_size=32",), 0.0),
    "1024px": (("train.resolution=1024",), 4.0),
    "offload-blocks": (("model.offload_blocks=true",), 1.0),
}
"""Name -> (what it adds to the command line, how much longer than `eager` it takes, start and compilation included: a guess)."""
MODELS: Mapping[str, float] = {"flux1-dev": 60, "sd3.5-m": 90, "wan2.1-1.3b": 60, "qwen-image": 150}
"""Seconds that `eager` takes on an H100, loading included, until one has been measured: a guess."""
ORDER = (
    "flux1-dev:eager", "flux1-dev:compile+auto", "flux1-dev:compile+auto+float8", "sd3.5-m:eager", "sd3.5-m:compile+auto",
    "sd3.5-m:compile+auto+float8", "flux1-dev:auto", "flux1-dev:compile", "flux1-dev:float8", "flux1-dev:native-flash", "flux1-dev:flash3",
    "flux1-dev:cudnn", "flux1-dev:rollout-16", "sd3.5-m:auto", "sd3.5-m:rollout-32", "flux1-dev:keep", "flux1-dev:batch-16",
    "sd3.5-m:batch-32", "flux1-dev:offload-blocks", "wan2.1-1.3b:eager", "wan2.1-1.3b:compile+auto", "flux1-dev:1024px",
    "qwen-image:eager", "qwen-image:compile+auto+float8", "flux1-dev:rollout-auto", "flux1-dev:half", "flux1-dev:flash",
    "flux1-dev:efficient", "flux1-dev:int8",
)  # fmt: skip
"""MODEL:VARIANT, the most telling first."""


@dataclass(frozen=True)
class Job:
    """One measurement: of ours, or of another trainer's command."""

    model: str
    variant: str
    round: int = 0
    command: str | None = None

    @property
    def overrides(self) -> list[str]:
        return [key for part in self.variant.split("+") for key in SETTINGS[part][0]]

    @property
    def longer(self) -> float:
        """How long it takes, in times of `eager`."""
        return 1.0 if self.command else 1 + sum(SETTINGS[part][1] for part in self.variant.split("+"))


def job(text: str) -> Job:
    """MODEL:VARIANT, where a variant is some settings joined by +.

    Raises:
        ValueError: no such model or setting; the message lists those that there are.
    """
    model, _, variant = text.partition(":")
    for what, name, known in (("model", model, MODELS), *(("setting", part, SETTINGS) for part in variant.split("+"))):
        if name not in known:
            raise ValueError(f"{text}: no {what} {name!r}; there are {', '.join(known)}")
    return Job(model, variant)


def jobs(variants: Sequence[str], beside: Mapping[str, str], rounds: int) -> list[Job]:
    """What is measured, in order: each round has everything once, other trainers right after our first variant of their model."""
    ours = [job(text) for text in variants]
    first = ours[0]
    others = [Job(first.model, name, command=command) for name, command in beside.items()]
    return [replace(each, round=k) for k in range(rounds) for each in (first, *others, *ours[1:])]


def expected(each: Job, known: Mapping[tuple[str, str], float]) -> float:
    """Seconds that a job takes: as it took before, or from what is known of its model, or of another one.

    Args:
        known: seconds that (model, variant) took.
    """
    if (each.model, each.variant) in known:
        return known[each.model, each.variant]
    same = [took / Job(model, variant).longer for (model, variant), took in known.items() if model == each.model and is_ours(variant)]
    other = [took / Job(m, v).longer / MODELS[m] for (m, v), took in known.items() if is_ours(v)]
    alone = same[0] if same else MODELS[each.model] * (other[0] if other else 1.0)
    return alone * each.longer


def is_ours(variant: str) -> bool:
    return all(part in SETTINGS for part in variant.split("+"))


def choose(waiting: Sequence[Job], left: float, known: Mapping[tuple[str, str], float]) -> Job | None:
    """The first that fits what is left of the time, in seconds; None where none does."""
    return next((each for each in waiting if expected(each, known) <= left), None)


def limit(each: Job, left: float, most: float, known: Mapping[tuple[str, str], float]) -> float:
    """Seconds after which a job is ended: it may take three times what is expected, and no more than what is left."""
    return min(left, most, math.inf if not known else max(120.0, 3 * expected(each, known)))
