"""Notices about valid configs with surprising effects, printed by `--check` and at the start of a run."""

import re
from collections.abc import Iterator

from flow_factory.algorithms import ALGORITHMS
from flow_factory.config import FewStepConfig, RunConfig
from flow_factory.config.base import show
from flow_factory.config.datasets import trained_on
from flow_factory.models import MODELS

DISTILLED = re.compile(r"turbo|schnell|lightning|hyper-?sd|\blcm\b|klein-\d+b$", re.IGNORECASE)
"""Names of checkpoints that are distilled for few steps."""
WITHOUT_GUIDANCE = re.compile(r"klein-\d+b$", re.IGNORECASE)
"""Those of them whose pipeline takes a guidance scale and does not use it."""
MANY_STEPS = 12
"""More steps than any of them is made for."""


def guided_rollouts(config: RunConfig) -> Iterator[str]:
    """A notice if rollouts use classifier-free guidance and training does not."""
    train, family = config.train, MODELS[config.model.model_type]
    algorithm = ALGORITHMS[train.trainer_type](train, config.scheduler)
    passes = family.passes({"guidance_scale": train.guidance_scale, **train.call})
    if algorithm.guidance("policy") is None or passes < 2 or WITHOUT_GUIDANCE.search(config.model.model_name_or_path):
        return
    yield (
        f"train.guidance_scale: {train.guidance_scale:g}: {train.trainer_type} rolls out with classifier-free guidance and trains without: "
        f"the weights absorb the effect of guidance; the authors of NFT and AWM use none ({family.unguided:g} in train: and eval:)"
    )


def of_loaded_weights(config: RunConfig) -> Iterator[str]:
    """A notice about the reference, if the run does not start from the checkpoint's weights."""
    train = config.train
    if config.model.resume_type not in ("lora", "full") or "ref" not in ALGORITHMS[train.trainer_type](train, config.scheduler).weights:
        return
    if train.reference == "start":
        yield "train.reference: start: the reference is the weights of model.resume_path"
    else:
        yield (
            "train.reference: base: the reference is the checkpoint without the weights of model.resume_path, and pulls the policy away "
            "from them; to compare with them write start"
        )


def few_steps(config: RunConfig) -> Iterator[str]:
    """A notice if a checkpoint for few steps is sampled with many."""
    train, name = config.train, config.model.model_name_or_path
    if not DISTILLED.search(name):
        return
    if isinstance(train, FewStepConfig):
        if train.base_guided:
            yield f"train.real_guidance_scale: {name} is distilled by its name, and has no guidance to give; null"
    elif train.num_inference_steps > MANY_STEPS or config.eval.num_inference_steps > MANY_STEPS:
        yield (
            f"{name} is distilled for few steps by its name: draw what is trained on, and evaluate, in as many steps as it was made for (4 "
            "to 9), without classifier-free guidance: num_inference_steps and guidance_scale in train: and eval:"
        )


def remarks(config: RunConfig) -> Iterator[str]:
    """All notices, a line each."""
    yield from guided_rollouts(config)
    yield from of_loaded_weights(config)
    yield from few_steps(config)
    train, family = config.train, MODELS[config.model.model_type]
    several = any(sum(reward.weight != 0 for reward in dataset.config.rewards) > 1 for dataset in trained_on(config))
    if train.advantage_aggregation == "gdpo" and several and "global_std" in train.model_fields_set:
        yield (
            f"train.global_std: {show(train.global_std)} has no effect with several rewards: gdpo normalises each of them in its group, "
            "then their sum over the epoch"
        )
    if family.evaluates_by is not None:
        yield (
            f"rollouts use Euler on the schedule's noise levels, and evaluations, like the stock pipeline, step by {family.evaluates_by}: "
            "with the same number of steps their images are better"
        )
    if family.precise_vae and config.mixed_precision != "no":
        yield (
            f"the VAE decodes in {config.mixed_precision}, and in diffusers' own examples in float32: load it in float32 to draw final "
            "images"
        )
