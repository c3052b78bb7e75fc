"""Keys that make a run fit a GPU, cheapest first, each tried on the estimate itself."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from flow_factory.config import ConfigError, RunConfig, dump_config, load_config
from flow_factory.memory.parts import Part, in_main_memory, peak

WRITE = "write: "
"""Before the keys of the way that fits."""
WORTH = 0.01
"""Share of the peak that a proposal must save."""
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
"""(keys, what they cost): they change time, and not what is learned. One that sets a key anew stands for the one before."""
HEAVY: tuple[tuple[tuple[str, ...], str], ...] = (
    (("config_file=examples/launch/fsdp2.yaml",), "weights are sharded over the GPUs, and gathered for every forward and backward"),
    (("train.optimizer=adamw8bit",), "the optimiser's state in 8 bits: rounded; needs bitsandbytes"),
    (("model.layerwise_casting=fp8_e4m3",), "frozen weights in 8 bits: rounded, and cast to 16 bits layer by layer"),
    (("model.quantization=bnb_8bit",), "frozen weights in 8 bits: rounded; needs bitsandbytes and an NVIDIA GPU"),
    (("model.quantization=bnb_4bit",), "frozen weights in 4 bits: rounded more; needs bitsandbytes and an NVIDIA GPU"),
    (("model.offload_blocks=true",), "nothing is rounded; blocks come from main memory for each forward and backward: a longer epoch"),
    (("model.finetune_type=lora", "model.target_modules=default"), "a LoRA is trained in place of the weights: less can be learned"),
)  # fmt: skip
"""Those that round weights, move them all the time, or train something else: one of them, beside the exact ones."""

Estimate = Callable[[RunConfig], list[Part]]


@dataclass(frozen=True)
class Tried:
    """A config with more keys, and its estimate."""

    config: RunConfig
    parts: list[Part]
    keys: tuple[str, ...] = ()
    cost: str = ""

    @property
    def gb(self) -> float:
        """At the peak of rollout and training: the encoders are for `encoding` to say."""
        return peak([p for p in self.parts if p.phase != "encoding"])


def encoding(parts: Sequence[Part]) -> float:
    """GB at the peak while the rows are encoded; no key makes it less, but rows that are in the cache need none."""
    return peak([p for p in parts if p.phase == "encoding"])


def proposals(config: RunConfig, estimate: Estimate, room: float) -> Iterator[str]:
    """Lines: what to write so that the run takes less than `room` GB of a card, what each costs, and how far it comes.

    Every figure is the estimate of a config that `load_config` has accepted.
    """
    start = Tried(config, estimate(config))
    chain = [start]
    for keys, cost in EXACT:
        if chain[-1].gb < room:
            break
        better = tried(chain[-1], keys, cost, estimate)
        if better is not None:
            if chain[-1].keys and names(better) == names(chain[-1]):
                chain.pop()
            chain.append(better)
    for before, after in zip(chain, chain[1:], strict=False):
        yield line(before, after, room)
    if chain[-1].gb < room:
        yield written(chain)
        return
    heavy = [found for keys, cost in HEAVY if (found := tried(chain[-1], keys, cost, estimate)) is not None]
    fits = [found for found in heavy if found.gb < room]
    if heavy:
        yield "and one of these" if fits else "and of these, none is enough"
        yield from (line(chain[-1], found, room) for found in heavy)
    if fits:
        yield written([*chain, fits[0]])
    else:
        yield "it remains too large: use a larger GPU, a smaller train.resolution, or a smaller model"


def tried(base: Tried, keys: tuple[str, ...], cost: str, estimate: Estimate) -> Tried | None:
    """With these keys more; None where they are set already, are refused, or save nothing worth it."""
    try:
        config = with_keys(base.config, keys)
    except ConfigError:
        return None
    more = Tried(config, estimate(config), keys, cost)
    return more if more.gb < (1 - WORTH) * base.gb else None


def with_keys(config: RunConfig, keys: Sequence[str]) -> RunConfig:
    """The config under further overrides, checked as any other.

    Raises:
        ConfigError: they do not go with the rest.
    """
    with TemporaryDirectory() as folder:
        file = Path(folder, "config.yaml")
        file.write_text(dump_config(config, secrets=True), encoding="utf-8")
        return load_config(file, keys)


def line(before: Tried, after: Tried, room: float) -> str:
    """From how much to how much, the keys, and what they cost."""
    host = in_main_memory(after.parts) * after.config.num_processes
    memory = f"; {host:.0f} GB of main memory" if host > in_main_memory(before.parts) * before.config.num_processes + 1 else ""
    fits = "; fits" if after.gb < room else ""
    return f"{before.gb:6.1f} -> {after.gb:.1f} GB  {' '.join(after.keys)}: {after.cost}{memory}{fits}"


def names(step: Tried) -> list[str]:
    """The keys that it sets."""
    return [key.partition("=")[0] for key in step.keys]


def written(chain: Sequence[Tried]) -> str:
    """All keys of the way that fits, to be copied."""
    return WRITE + " ".join(key for step in chain for key in step.keys)
