"""Notices and errors when a run's metrics show that it learns nothing, or cannot continue."""

import logging
from collections.abc import Mapping

from flow_factory.config import RunConfig
from flow_factory.config.base import show
from flow_factory.config.train import LORA_RATE
from flow_factory.distributed.engines import Engine
from flow_factory.utils.counting import counted

logger = logging.getLogger(__name__)
STILL = 0.01
"""Share of the clip range below which the spread of the ratio is not a movement."""
LOWER = "the steps were too large: write a lower train.learning_rate, and resume from an earlier checkpoint"
SUSPECTS = (
    "resume from the last checkpoint; a step may have been too large (train.learning_rate), 16 bits too narrow (mixed_precision), or a "
    "kernel wrong: the simplest attention is model.attn_backend: _native_math"
)
PATIENCE = 3
"""Number of such epochs before the notice."""


class TrainingHealth:
    """Checks each epoch's metrics. Each notice is printed once."""

    def __init__(self, config: RunConfig):
        self.config = config
        self.checked_epsilon = self.policy_moves = False
        self.still = 0
        """Epochs in which the ratio has not moved."""

    def look(self, metrics: Mapping[str, float], updates: int) -> None:
        """Args:
        metrics: of an epoch, as they are logged.
        updates: optimiser steps taken so far.
        """
        if updates <= self.config.train.lr_warmup_steps:
            return
        for notice in (self.epsilon_rules(metrics), self.stands_still(metrics)):
            if notice is not None:
                logger.warning(notice)

    def epsilon_rules(self, metrics: Mapping[str, float]) -> str | None:
        """Adam divides by the root of the second moment plus epsilon. If epsilon dominates, the steps are as small as the gradients."""
        rms, epsilon = metrics.get("train/grad_rms", 0.0), self.config.train.adam_epsilon
        if self.checked_epsilon or rms == 0:
            return None
        self.checked_epsilon = True
        if rms >= 10 * epsilon:
            return None
        share = rms / (rms + epsilon)
        return (
            f"train.adam_epsilon: {show(epsilon)} dominates the step: the gradient is {rms:.1e} a weight (train/grad_rms), so an update is "
            f"about {share:.2g} of what train.learning_rate says; write adam_epsilon: 1.0e-15"
        )

    def stands_still(self, metrics: Mapping[str, float]) -> str | None:
        """Whether updates move the ratio far less than the clip range allows. An epoch of one update has no ratio to compare."""
        train = self.config.train
        width, spread = getattr(train, "clip_range", None), metrics.get("train/ratio_std", 0.0)
        if not train.stochastic or width is None or spread == 0 or self.policy_moves:
            return None
        self.policy_moves, self.still = spread >= STILL * min(-width[0], width[1]), self.still + 1
        if self.policy_moves or self.still != PATIENCE:
            return None
        kind = f"; a LoRA usually takes {show(LORA_RATE)}" if self.config.model.finetune_type == "lora" else ""
        return (
            f"train.learning_rate: {show(train.learning_rate)} hardly moves the policy: for {PATIENCE} epochs train/ratio_std has been "
            f"below a hundredth of train.clip_range (now {spread:.1e}); write a larger one{kind}"
        )


def diagnosis(engine: Engine, updates: int) -> str | None:
    """A line about weights that are NaN or inf, with advice; None if all of this process's are finite.

    Args:
        updates: optimiser steps taken so far.
    """
    params = dict(engine.policy.components.named_parameters())
    broken = [name for name, p in params.items() if p.is_floating_point() and not engine.part(p).detach().float().isfinite().all()]
    if not broken:
        return None
    which = f"{broken[0]} (and {len(broken) - 1} more)" if broken[1:] else broken[0]
    if updates and all(params[name].requires_grad for name in broken):
        return f"{after(updates)} the trained weights {which} hold NaN or inf: {LOWER}"
    source = "model.model_name_or_path or model.resume_path"
    return f"the weights {which} hold NaN or inf from the start: the checkpoint is damaged ({source}); download or save it again"


def no_numbers(engine: Engine, updates: int) -> str:
    """A line about why the model's output is NaN or inf, with advice."""
    found = diagnosis(engine, updates)
    if found is not None:
        return found
    advice = LOWER if updates else "its activations overflow the dtype: write mixed_precision: bf16, or no"
    return f"{after(updates)} the model's velocity is NaN or inf, though its weights are finite: {advice}"


def after(updates: int) -> str:
    return f"after {counted(updates, 'optimiser step')}" if updates else "before any optimiser step"
