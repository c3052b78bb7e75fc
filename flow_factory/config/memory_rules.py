"""Rules about what saves memory. Each yields what breaks it."""

from collections.abc import Iterator

from flow_factory.config.algorithm_rules import Rule
from flow_factory.config.engine_rules import engine_of_file
from flow_factory.config.nodes import Problem
from flow_factory.config.recompute import every_block
from flow_factory.config.run import RunConfig

FROZEN = ("quantization", "layerwise_casting")
"""Keys of `model:` that keep the frozen transformer in fewer bits."""


def _set_keys(config: RunConfig) -> Iterator[tuple[str, str]]:
    """(key, value) of those that are set."""
    return ((key, value) for key in FROZEN if (value := getattr(config.model, key)) is not None)


def keeps_no_copy(value: str) -> bool:
    """Whether autograd keeps the weights of `model.quantization` as they are."""
    return value.startswith("bnb") or value.endswith("_dynamic")


def fewer_bits_are_frozen(config: RunConfig) -> Iterator[Problem]:
    for key, value in _set_keys(config):
        if config.model.finetune_type == "full":
            text = f"{value} keeps frozen weights in fewer bits, and finetune_type: full trains them; write null, or finetune_type: lora"
            yield Problem(("model", key), text)


def fewer_bits_once(config: RunConfig) -> Iterator[Problem]:
    if len(list(_set_keys(config))) > 1:
        text = f"{config.model.layerwise_casting} beside quantization: {config.model.quantization}: the weights are in fewer bits already"
        yield Problem(("model", "layerwise_casting"), f"{text}; write null for one of them")


def fewer_bits_are_recomputed(config: RunConfig) -> Iterator[Problem]:
    """bitsandbytes and products in 8 bits alone go back through the weights as they are kept."""
    for key, value in _set_keys(config):
        if not keeps_no_copy(value) and not every_block(config.train.enable_gradient_checkpointing):
            text = f"{value} computes with a copy of each layer's weights in mixed_precision, which autograd keeps for the backward pass"
            yield Problem(("model", key), f"{text}: that takes more memory than it saves; write train.enable_gradient_checkpointing: true")


def fewer_bits_are_whole(config: RunConfig) -> Iterator[Problem]:
    engine = engine_of_file(config)
    for key, value in _set_keys(config):
        if engine is not None and engine.shards_weights:
            text = f"{value} weights cannot be cut into shards, and {engine.name} shards them"
            source = "offload_blocks: false" if config.model.offload_blocks else "config_file: examples/launch/multi_gpu.yaml"
            yield Problem(("model", key), f"{text}; write null, or {source}")


def fewer_bits_are_not_compiled(config: RunConfig) -> Iterator[Problem]:
    for key, value in _set_keys(config):
        if config.model.compile and not keeps_no_copy(value):
            yield Problem(("model", key), f"torch compiles no backward pass through {value} weights; write null, or compile: false")


def float8_is_rounded_to_bf16(config: RunConfig) -> Iterator[Problem]:
    if config.model.quantization == "torchao_float8_dynamic" and config.mixed_precision != "bf16":
        yield Problem(("model", "quantization"), "torchao_float8_dynamic makes products in bf16; write mixed_precision: bf16")


MEMORY_RULES: tuple[Rule, ...] = (
    fewer_bits_are_frozen,
    fewer_bits_once,
    fewer_bits_are_recomputed,
    fewer_bits_are_whole,
    fewer_bits_are_not_compiled,
    float8_is_rounded_to_bf16,
)
