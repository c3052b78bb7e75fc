"""Checks of the config against the checkpoint: sizes, guidance, experts."""

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from flow_factory.config import (
    DPOConfig,
    DRaFTConfig,
    EvalConfig,
    FewStepConfig,
    ForwardConfig,
    OPDConfig,
    RunConfig,
    TDMR1Config,
    TrainConfig,
    TransitionConfig,
    pipeline_kwargs,
)
from flow_factory.config.datasets import evaluations
from flow_factory.models.base import ModelAdapter
from flow_factory.policy.context_parallel import check_splits
from flow_factory.utils.errors import UserError

logger = logging.getLogger(__name__)


def checkpoint_of(config: RunConfig) -> tuple[str, str, dict[str, Any], str | None]:
    """The keys that identify a checkpoint: name, family, overrides of its scheduler, pipeline."""
    return config.model.model_name_or_path, config.model.model_type, config.scheduler.overrides, config.model.pipeline_class


def fitted(config: RunConfig, sketch: ModelAdapter) -> RunConfig:
    """The config, checked against the checkpoint, without the stochastic steps of experts that are not trained.

    Args:
        sketch: the checkpoint without its weights.

    Raises:
        UserError: a size is impossible; or `scheduler.sde_steps` names a step of an expert that is not trained, or none is left.
    """
    sections: list[tuple[str, TrainConfig | EvalConfig]] = [("train", config.train), *(("eval", found) for found in evaluations(config))]
    for name, section in sections:
        try:
            sketch.check_call(pipeline_kwargs(section))
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
    check_splits(sketch, config.model.context_parallel)
    train, scheduler, trained = config.train, config.scheduler, config.model.target_components
    check_guidance(train, sketch)
    others = sketch.out_of_reach(trained, train.num_inference_steps)
    candidates = scheduler.stochastic_steps(train.num_inference_steps, train.first_step)
    if not train.stochastic and others:
        check_noise_levels(config, others, trained)
        return config
    lost = [k for k in candidates if k in others]
    if not lost:
        return config
    left = [k for k in candidates if k not in others]
    both = both_experts(trained, others[lost[0]])
    if scheduler.sde_steps is not None or not left or (scheduler.num_sde_steps or 1) > len(left):
        write = f"write {left}, or " if left else ""
        raise UserError(f"scheduler.sde_steps: {others[lost[0]]} draws steps {lost} and is not trained; {write}{both}")
    logger.warning("scheduler.sde_steps: %s draws steps %s and is not trained: %s remain; or %s", others[lost[0]], lost, left, both)
    return config.model_copy(update={"scheduler": scheduler.model_copy(update={"sde_steps": tuple(left)})})


def both_experts(trained: Sequence[str], other: str) -> str:
    return f"train both experts: model.target_components: {json.dumps([*trained, other])}"


def check_guidance(train: TrainConfig, sketch: ModelAdapter) -> None:
    """Raises:
    UserError: the family has no classifier-free guidance for the reference; a few-step student would be sampled with it; the family
        cannot encode media; or the gradient would go through classifier-free guidance.
    """
    if isinstance(train, DRaFTConfig) and (sketch.guided(pipeline_kwargs(train)) or sketch.own_guider):
        key = sketch.cfg if sketch.cfg in train.call else "guidance_scale"
        text = "is classifier-free guidance here: draft's gradient would train the answer to the negative prompt against itself"
        raise UserError(f"train.{key}: {text}; write {sketch.unguided:g}, or another trainer_type")
    key = "kl_guidance_scale" if isinstance(train, TransitionConfig) else "kl_cfg"
    if isinstance(train, FewStepConfig):
        key = "real_guidance_scale"
        check_student(train, sketch)
    scales = {key: getattr(train, key, None)}
    if isinstance(train, OPDConfig):
        scales = {f"teachers.{k}.guidance_scale": teacher.guidance_scale for k, teacher in enumerate(train.teachers)}
    for key, scale in scales.items():
        if scale is None or scale <= 1:
            continue
        if not sketch.guided(sketch.with_guidance(pipeline_kwargs(train), scale)):
            what = ", with tdm_weight: 0 and surrogate_guidance_scale: 1" if isinstance(train, TDMR1Config) else ""
            raise UserError(f"train.{key}: this {type(sketch).__name__} has no classifier-free guidance; write 1.0{what}")
        if sketch.cfg != sketch.guidance:
            who = "teacher" if isinstance(train, OPDConfig) else "reference"
            logger.warning("train.%s: the %s has %s %g beside its embedded guidance; 1.0 removes that", key, who, sketch.cfg, scale)
    if train.given and sketch.encodes_media is not None:
        key = "offline" if isinstance(train, DPOConfig) else "trainer_type"
        raise UserError(f"train.{key}: media cannot be encoded for {type(sketch).__name__}: {sketch.encodes_media}")


def check_student(train: FewStepConfig, sketch: ModelAdapter) -> None:
    """Raises:
    UserError: the pipeline would sample the student with guidance that takes further forwards.
    """
    call, name = pipeline_kwargs(train), type(sketch.pipe).__name__
    if sketch.own_guider:
        text = f"samples with the guider of its checkpoint, and {train.trainer_type} needs samples without classifier-free guidance"
        raise UserError(f"train.trainer_type: {name} {text}; write another trainer_type")
    if sketch.guided(call):
        text = f"{train.guidance_scale:g}: a student of few steps is drawn without classifier-free guidance"
        raise UserError(
            f"train.guidance_scale: {text}; write {sketch.unguided:g}: real_guidance_scale is the base's, which the student learns"
        )
    unguided = {} if sketch.cfg is None else {sketch.cfg: sketch.unguided}  # of a distilled checkpoint the scale does nothing
    if type(sketch).passes({"guidance_scale": train.guidance_scale, **train.call, **unguided}) > 1:
        off = [f"{key}: {value:g}" for key, value in sketch.with_guidance({}, 1.0).items() if call.get(key) != value]
        raise UserError(f"train: {name} would sample the student with further guidance; write {', '.join(off)}, and the same in eval:")


def check_noise_levels(config: RunConfig, others: Mapping[int, str], trained: Sequence[str]) -> None:
    """Raises:
    UserError: some trained noise levels belong to an expert that is not trained.
    """
    train, both = config.train, both_experts(trained, next(iter(others.values())))
    if isinstance(train, (DRaFTConfig, OPDConfig)):
        key, path = (
            ("draft_steps", train.last_steps)
            if isinstance(train, DRaFTConfig)
            else ("timestep_range", train.distilled_steps(config.scheduler))
        )
        if lost := [k for k in path if k in others]:
            raise UserError(f"train.{key}: {others[lost[0]]} draws steps {lost} and is not trained; {both}")
        return
    if not isinstance(train, ForwardConfig) or not train.time_sampling_strategy.startswith("discrete"):
        kind = "train.time_sampling_strategy" if isinstance(train, ForwardConfig) else "train.timestep_range"
        kind = "model.target_components" if isinstance(train, FewStepConfig) else kind
        raise UserError(f"{kind}: some noise levels would belong to an expert that is not trained; {both}")
    first, last = train.index_window
    steps = train.num_inference_steps
    mine = [k for k in range(first, last) if k not in others]
    if len(mine) < last - first:
        write = f"write [{mine[0] / steps:g}, {(mine[-1] + 1) / steps:g}], or " if mine else ""
        raise UserError(f"train.timestep_range: some of steps {first} to {last - 1} belong to an expert that is not trained; {write}{both}")
