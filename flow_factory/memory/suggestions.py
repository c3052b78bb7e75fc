"""Keys that make a run fit a GPU, cheapest first. Each one is tested with the estimate."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from flow_factory.config import ConfigError, RunConfig, dump_config, load_config
from flow_factory.memory.parts import Part, in_main_memory, peak

WRITE = "write: "
"""The prefix of the line with the keys that make the run fit."""
WORTH = 0.01
"""The share of the peak that a proposal must save."""
BATCHES = ("train.per_device_batch_size=1", "eval.per_device_batch_size=1")
SHARES = (0.25, 0.5, 0.75)
RECOMPUTED = "train.enable_gradient_checkpointing"
EXACT: tuple[tuple[tuple[str, ...], str], ...] = (
    (("mixed_precision=bf16",), "half the bits of frozen weights and forwards; faster on a GPU"),
    (("model.vae_slicing=true",), "images are decoded one by one; they are the same"),
    (("model.offload_idle=true",), "parts that only a rollout needs are kept in main memory: a copy there and back per epoch"),
    (("train.offload_samples_to_cpu=true",), "rollouts are kept in main memory; their values are the same"),
    (("train.ema_device=cpu",), "the averaged weights are kept in main memory; a copy before every evaluation"),
    (("train.ref_param_device=cpu",), "the reference is kept in main memory; a copy per epoch"),
    *(((f"{RECOMPUTED}={s}",), f"{s:.0%} of the blocks are recomputed in the backward: {s / 3:.0%} more time there") for s in SHARES),
    ((f"{RECOMPUTED}=true",), "every block is recomputed in the backward: a third more time in training"),
    (BATCHES, "the same samples, fewer at a time: more and smaller forwards"),
)  # fmt: skip
"""(keys, their cost). These keys change the time, not the result. A later entry for the same key replaces the earlier one."""
HEAVY: tuple[tuple[tuple[str, ...], str], ...] = (
    (("config_file=examples/launch/fsdp2.yaml",), "weights are sharded over the GPUs, and gathered for every forward and backward"),
    (("train.optimizer=adamw8bit",), "the optimiser's state in 8 bits: rounded; needs bitsandbytes"),
    (("model.layerwise_casting=fp8_e4m3",), "frozen weights in 8 bits: rounded, and cast to 16 bits layer by layer"),
    (("model.quantization=bnb_8bit",), "frozen weights in 8 bits: rounded; needs bitsandbytes and an NVIDIA GPU"),
    (("model.quantization=bnb_4bit",), "frozen weights in 4 bits: rounded more; needs bitsandbytes and an NVIDIA GPU"),
    (("model.offload_blocks=true",), "nothing is rounded; blocks come from main memory for each forward and backward: a longer epoch"),
    (("model.finetune_type=lora", "model.target_modules=default"), "a LoRA is trained in place of the weights: less can be learned"),
)  # fmt: skip
"""(keys, their cost) of keys that round weights, move them constantly, or train something else. One is added to the exact ones."""

Estimate = Callable[[RunConfig], list[Part]]


@dataclass(frozen=True)
class Candidate:
    """A config with additional keys, and its estimate."""

    config: RunConfig
    parts: list[Part]
    keys: tuple[str, ...] = ()
    cost: str = ""

    @property
    def gb(self) -> float:
        """GB at the peak of rollout and training. `encoding` returns the peak of encoding."""
        return peak([p for p in self.parts if p.phase != "encoding"])


def encoding(parts: Sequence[Part]) -> float:
    """GB at the peak while rows are encoded. No key reduces it, but rows in the cache need no encoding."""
    return peak([p for p in parts if p.phase == "encoding"])


def proposals(config: RunConfig, estimate: Estimate, room: float) -> Iterator[str]:
    """Lines with the keys that bring the run below `room` GB, the cost of each, and the estimate with it.

    Every number is the estimate of a config that `load_config` has accepted.
    """
    start = Candidate(config, estimate(config))
    chain = [start]
    for keys, cost in EXACT:
        if chain[-1].gb < room:
            break
        better = try_keys(chain[-1], keys, cost, estimate)
        if better is not None:
            if chain[-1].keys and names(better) == names(chain[-1]):
                chain.pop()
            chain.append(better)
    for before, after in zip(chain, chain[1:], strict=False):
        yield line(before, after, room)
    if chain[-1].gb < room:
        yield written(chain)
        return
    heavy = [found for keys, cost in HEAVY if (found := try_keys(chain[-1], keys, cost, estimate)) is not None]
    fits = [found for found in heavy if found.gb < room]
    if heavy:
        yield "and one of these" if fits else "and of these, none is enough"
        yield from (line(chain[-1], found, room) for found in heavy)
    if fits:
        yield written([*chain, fits[0]])
    else:
        yield "it remains too large: use a larger GPU, a smaller train.resolution, or a smaller model"


def try_keys(base: Candidate, keys: tuple[str, ...], cost: str, estimate: Estimate) -> Candidate | None:
    """The config with these keys added; None if they are already set, are invalid, or save too little."""
    try:
        config = with_keys(base.config, keys)
    except ConfigError:
        return None
    more = Candidate(config, estimate(config), keys, cost)
    return more if more.gb < (1 - WORTH) * base.gb else None


def with_keys(config: RunConfig, keys: Sequence[str]) -> RunConfig:
    """The config with further overrides, validated like any other.

    Raises:
        ConfigError: they contradict other keys.
    """
    with TemporaryDirectory() as folder:
        file = Path(folder, "config.yaml")
        file.write_text(dump_config(config, secrets=True), encoding="utf-8")
        return load_config(file, keys)


def line(before: Candidate, after: Candidate, room: float) -> str:
    """A line with the estimate before and after, the keys, and their cost."""
    host = in_main_memory(after.parts) * after.config.num_processes
    memory = f"; {host:.0f} GB of main memory" if host > in_main_memory(before.parts) * before.config.num_processes + 1 else ""
    fits = "; fits" if after.gb < room else ""
    return f"{before.gb:6.1f} -> {after.gb:.1f} GB  {' '.join(after.keys)}: {after.cost}{memory}{fits}"


def names(step: Candidate) -> list[str]:
    """The keys that this step sets."""
    return [key.partition("=")[0] for key in step.keys]


def written(chain: Sequence[Candidate]) -> str:
    """All keys of the steps together, to be copied."""
    return WRITE + " ".join(key for step in chain for key in step.keys)
