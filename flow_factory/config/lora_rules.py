"""Rules about the form of a LoRA. Each yields what breaks it."""

from collections.abc import Iterator

from flow_factory.config.algorithm_rules import Rule
from flow_factory.config.algorithms import SFTConfig
from flow_factory.config.distillation import OPDConfig
from flow_factory.config.engine_rules import engine_of_file
from flow_factory.config.nodes import Problem
from flow_factory.config.run import RunConfig

KEYS = ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "lora_dropout")


def forms_are_of_loras(config: RunConfig) -> Iterator[Problem]:
    if config.model.finetune_type == "lora":
        return
    if config.model.exclude_modules:
        yield Problem(("model", "exclude_modules"), "only a LoRA leaves layers out; name the layers in target_modules, or write lora")
    for key in KEYS:
        if getattr(config.model, key):
            yield Problem(("model", key), "is of a LoRA, and model.finetune_type is full; leave it out, or write lora")


def magnitudes_are_whole(config: RunConfig) -> Iterator[Problem]:
    """What DoRA cannot work with, as it reads the weights of a layer beside the layer's own forward, or has not been proved with."""
    model, train, engine, here = config.model, config.train, engine_of_file(config), ("model", "use_dora")
    if not model.use_dora or model.finetune_type == "full":
        return
    for key in ("quantization", "layerwise_casting"):
        if (value := getattr(model, key)) is not None:
            yield Problem(here, f"true takes the norms of whole weights, and {key}: {value} keeps them in fewer bits; write null for it")
    if engine is not None and engine.kind == "zero" and engine.shards_weights:
        text = f"true reads a layer's weights beside its forward, where {engine.name} has given them back; write an FSDP2 file, or ZeRO-2"
        yield Problem(here, text)
    if model.compile:
        yield Problem(here, "true is not proved in compiled blocks; write false for one of them")
    if train.moves_reference:
        yield Problem(here, "true is not proved with a reference that moves, which begins as a LoRA without effect; write false")
    for format in {*config.log.save_formats} & {"comfyui", "kohya"}:
        text = f"{format} does not carry a DoRA as it was trained; leave it out, or write model.use_dora: false"
        yield Problem(("log", "save_formats"), text)
    if isinstance(train, OPDConfig):
        yield Problem(here, "true: the teachers are LoRAs without magnitudes, in whose form the student is; write false")


def masks_are_sampled(config: RunConfig) -> Iterator[Problem]:
    model, here = config.model, ("model", "lora_dropout")
    if not model.lora_dropout or model.finetune_type == "full":
        return
    if not isinstance(config.train, SFTConfig):
        text = f"{config.train.trainer_type} compares velocities of training with those of sampling, or of other weights, to the bit"
        yield Problem(here, f"{model.lora_dropout:g}: {text}, and masks would differ: a ratio of 1 would be none; write 0, or sft")
    for key, value in (("use_dora", model.use_dora), ("compile", model.compile), ("context_parallel", model.context_parallel > 1)):
        if value:
            yield Problem(here, f"{model.lora_dropout:g} is not proved beside {key}; write 0, or leave {key} out")


LORA_RULES: tuple[Rule, ...] = (forms_are_of_loras, magnitudes_are_whole, masks_are_sampled)
