"""Rules about several trained networks, and about students of few steps. Each yields what breaks it."""

from collections.abc import Iterator

from flow_factory.config.algorithm_rules import Rule
from flow_factory.config.base import show
from flow_factory.config.engine_rules import engine_of_file
from flow_factory.config.few_steps import FewStepConfig, TDMR1Config
from flow_factory.config.nodes import Problem
from flow_factory.config.run import RunConfig


def networks_are_trained(config: RunConfig) -> Iterator[Problem]:
    train, names = config.train, [network.name for network in config.optimizers]
    for k, name in enumerate(names):
        known = " or ".join(("default", *train.networks) if not train.networks else ("generator", *train.networks))
        if name not in train.networks:
            text = f"{name}: {train.trainer_type} trains no network of this name; write {known}"
            yield Problem(("optimizers", k, "name"), text)
        elif name in names[:k]:
            yield Problem(("optimizers", k, "name"), f"{name} is the name of optimizers.{names.index(name)} too; keep one")
        elif config.optimizers[k].optimizer not in (None, train.optimizer):
            text = f"{config.optimizers[k].optimizer}: all networks have train.optimizer, which is {train.optimizer}; delete this key"
            yield Problem(("optimizers", k, "optimizer"), text)


def networks_fit(config: RunConfig) -> Iterator[Problem]:
    """What several networks over one base have not been proved with, or cannot work with."""
    train, model, engine = config.train, config.model, engine_of_file(config)
    if not train.networks:
        return
    what = f"{train.trainer_type} trains {1 + len(train.networks)} networks"
    if model.finetune_type != "lora":
        yield Problem(("model", "finetune_type"), f"{model.finetune_type}: {what}, which are LoRAs over one frozen base; write lora")
    if engine is not None and engine.kind == "zero":
        text = f"{engine.name} steps all weights at once, and {what} in turn; write an FSDP2 file, or null"
        yield Problem(("config_file",), text)
    if train.optimizer == "muon":
        yield Problem(("train", "optimizer"), f"muon: {what}, each with a step of its own, which muon does not support here; write adamw")
    if model.compile:
        yield Problem(("model", "compile"), f"true: {what}, which take turns in the compiled blocks; this is untested, so write false")
    if model.context_parallel > 1:
        yield Problem(
            ("model", "context_parallel"), f"{model.context_parallel}: {what}; this is untested with shared sequences, so write 1"
        )
    if train.reference == "start":
        text = f"start: the base without any of its LoRAs is what {train.trainer_type} compares with; write base"
        yield Problem(("train", "reference"), text)


def students_are_whole(config: RunConfig) -> Iterator[Problem]:
    train = config.train
    if not isinstance(train, FewStepConfig):
        return
    name = train.trainer_type
    for key, requested, drawn in (
        ("num_inference_steps", config.eval.num_inference_steps, train.num_inference_steps),
        ("guidance_scale", config.eval.guidance_scale, train.guidance_scale),
    ):
        if requested != drawn:
            text = f"{requested:g}: a student of few steps is evaluated as it is trained, by train.{key}; write {drawn:g}"
            yield Problem(("eval", key), text)
    if train.best_of_n is not None:
        yield Problem(("train", "best_of_n"), f"{train.best_of_n}: {name} learns from every sample; write null")
    if train.drop_zero_variance:
        yield Problem(("train", "drop_zero_variance"), f"{name} learns from samples of advantage 0 too; write false")
    if isinstance(train, TDMR1Config) and not train.base_guided:
        for key, off in (("tdm_weight", 0), ("surrogate_guidance_scale", 1)):
            if getattr(train, key) > off:
                text = f"{getattr(train, key):g}: real_guidance_scale: {show(train.real_guidance_scale)} leaves no guidance; write {off}"
                yield Problem(("train", key), text)
    if not train.judged and config.rewards:
        yield Problem(("rewards",), f"{name} takes no rewards; name them in eval_rewards, to measure its pictures")


NETWORK_RULES: tuple[Rule, ...] = (networks_are_trained, networks_fit, students_are_whole)
