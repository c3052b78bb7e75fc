"""Rules about on-policy distillation and its teachers. Each yields what breaks it."""

from collections.abc import Iterator

from flow_factory.config.algorithm_rules import Rule
from flow_factory.config.datasets import known_datasets, trained_on
from flow_factory.config.distillation import OPDConfig
from flow_factory.config.nodes import Keys, Problem
from flow_factory.config.run import RunConfig

LEAST_NOISE = 1e-3
"""Noise level below which an error over the variance is mostly rounding."""


def teachers_are_routed(config: RunConfig) -> Iterator[Problem]:
    """The rule: exactly one teacher for each data set that is trained on."""
    train = config.train
    if not isinstance(train, OPDConfig):
        return
    names = [teacher.name for teacher in train.teachers]
    trained = [dataset.name for dataset in trained_on(config)]
    for k, teacher in enumerate(train.teachers):
        here: Keys = ("train", "teachers", k)
        if teacher.name in names[:k]:
            text = f"{teacher.name!r} is the name of train.teachers.{names.index(teacher.name)} too; write another"
            yield Problem((*here, "name"), text)
        yield from known_datasets((*here, "applicable_datasets"), teacher.applicable_datasets or (), config)
        if not any(map(teacher.teaches, trained)):
            text = "none of its data sets has train:, so it would never be asked; name one that has, or leave this teacher out"
            yield Problem((*here, "applicable_datasets"), text)
    for dataset in trained_on(config):
        mine = [k for k, teacher in enumerate(train.teachers) if teacher.teaches(dataset.name)]
        of = f"data set {dataset.name!r}" if dataset.name else "data set"
        if not mine:
            text = f"no teacher for it; name {dataset.name} in applicable_datasets of one of train.teachers, or leave its train: out"
            yield Problem(dataset.keys, text)
        elif len(mine) > 1:
            text = f"the {of} has the teacher {names[mine[0]]!r} already, and a row has only one; name the data sets of each"
            yield Problem(("train", "teachers", mine[1], "applicable_datasets"), text)


def distillation_fits(config: RunConfig) -> Iterator[Problem]:
    train, scheduler = config.train, config.scheduler
    if not isinstance(train, OPDConfig):
        return
    if config.model.finetune_type != "lora":
        text = f"{config.model.finetune_type}: teachers are LoRAs, which are kept beside the policy's own over one frozen base; write lora"
        yield Problem(("model", "finetune_type"), text)
    if config.rewards:
        yield Problem(("rewards",), "diffusion-opd takes no rewards; name them in eval_rewards, to measure its pictures")
    for key in ("best_of_n", "drop_zero_variance", "reward_optimization_overlap"):
        if getattr(train, key):
            yield Problem(("train", key), f"diffusion-opd has no advantages; write {'null' if key == 'best_of_n' else 'false'}")
    if scheduler.dynamics_type != "ODE" and scheduler.noise_level < LEAST_NOISE:
        text = f"{scheduler.noise_level:g}: {scheduler.dynamics_type} draws with noise, and xt measures errors in it"
        yield Problem(("scheduler", "noise_level"), f"{text}; write e.g. 0.7, or dynamics_type: ODE")
    elif not train.distilled_steps(scheduler):
        text = f"has none of the {train.num_inference_steps - train.first_step} steps of a rollout; widen it, e.g. 1.0"
        yield Problem(("train", "timestep_range"), text)


DISTILLATION_RULES: tuple[Rule, ...] = (teachers_are_routed, distillation_fits)
