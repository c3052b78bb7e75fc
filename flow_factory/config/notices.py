"""Notices about a valid configuration: keys that have no effect, and choices with a visible side effect."""

from collections.abc import Callable, Iterator
from pathlib import Path

from flow_factory.config.base import Section, show
from flow_factory.config.distillation import OPDConfig
from flow_factory.config.engine import found
from flow_factory.config.recompute import every_block
from flow_factory.config.run import RunConfig

IDLE = {
    "preprocessing_batch_size": "rows are encoded one by one, since the bits of a row in a batch depend on its neighbours",
    "dataloader_num_workers": "encoded rows are read from the cache, without worker processes",
}
"""Keys of `data:` that other implementations need and this one does not, and why."""


def notices(config: RunConfig) -> tuple[str, ...]:
    """The notices about a configuration, a line each."""
    return tuple(line for find in NOTICES for line in find(config))


def _chosen(section: Section, key: str) -> bool:
    """Whether somebody wrote this key. The `config.yaml` of a run has every key, so that one at its default there is nobody's."""
    written, field = section.model_fields_set, type(section).model_fields[key]
    whole = {*section.own_keys()} - {"height", "width"} <= written
    return key in written and not (whole and getattr(section, key) == field.get_default(call_default_factory=True))


def _of_training(config: RunConfig) -> Iterator[str]:
    train = config.train
    if train.ema_decay and train.max_epochs is not None and train.max_epochs < train.ema_update_interval:
        yield (
            f"train.ema_update_interval: {train.ema_update_interval} is more than the {train.max_epochs} epochs of the run: the average, "
            "which is what is evaluated and saved, stays at the untrained weights; write 1, or ema_decay: 0"
        )
    if train.optimizer != "muon" and (idle := [key for key in sorted(train.own_keys()) if key.startswith("muon_") and _chosen(train, key)]):
        yield f"train.{', train.'.join(idle)}: no effect with optimizer: {train.optimizer}"
    clip = getattr(train, "clip_range", (0.0, 0.0))
    if clip[0] < -1 and clip[1] > 1:
        yield f"train.clip_range: {show(clip)} clips nothing: a ratio - 1 is never below -1; public values are 1.0e-4 to 0.2"


def _of_noise(config: RunConfig) -> Iterator[str]:
    train, scheduler = config.train, config.scheduler
    last = train.num_inference_steps - 1
    if train.draws_noise(scheduler) and last in scheduler.stochastic_steps(last + 1):
        yield f"scheduler.sde_steps: noise of step {last}, the last one, stays in the pictures; without {last} it does not"
    by_ode = not train.draws_noise(scheduler) and _chosen(scheduler, "dynamics_type")
    if by_ode and scheduler.dynamics_type != "ODE":
        yield f"scheduler.dynamics_type: {scheduler.dynamics_type} has no effect: {train.trainer_type} rolls out by the ODE"
    if not train.draws_noise(scheduler) and scheduler.step_selection != "random":
        yield f"scheduler.step_selection: {scheduler.step_selection} has no effect: {train.trainer_type} has no stochastic steps"
    if isinstance(train, OPDConfig) and train.by_variance(scheduler) and _chosen(train, "timestep_range"):
        yield "train.timestep_range has no effect: with noise, xt trains on the stochastic steps (scheduler.sde_steps)"


def _of_data(config: RunConfig) -> Iterator[str]:
    if config.data.force_reprocess:
        yield "data.force_reprocess is not needed: rows are cached by content, so what has changed is always encoded anew"
    if config.data.sampler_type not in (None, "auto"):
        yield f"data.sampler_type: {config.data.sampler_type} has no effect: a group always lives on one process"


def _of_idle_keys(config: RunConfig) -> Iterator[str]:
    for key, why in IDLE.items():
        if getattr(config.data, key) != type(config.data).model_fields[key].default:
            yield f"data.{key} has no effect: {why}"


def _of_engine(config: RunConfig) -> Iterator[str]:
    engine = config.engine
    if config.config_file is not None and config.num_processes == 1 and engine.kind != "fsdp":
        yield f"config_file: {config.config_file} has no effect on one process"
    if config.config_file is not None and (file := found(config.config_file)) != Path(config.config_file):
        yield f"config_file: there is no {config.config_file}; using Flow-Factory's own {file.name}"
    for line in engine.idle:
        yield f"config_file: {config.config_file}: {line}"
    if engine.stage == 3 and config.num_processes > 1 and not every_block(config.train.enable_gradient_checkpointing):
        yield f"{engine.name} keeps gathered weights from a forward to its backward; train.enable_gradient_checkpointing: true does not"


def _of_rewards(config: RunConfig) -> Iterator[str]:
    for section, rewards in (("rewards", config.rewards), ("eval_rewards", config.eval_rewards or ())):
        for k, reward in enumerate(rewards):
            if reward.num_workers != 1 and not reward.async_reward:
                yield f"{section}.{k}.num_workers: {reward.num_workers} has no effect without async_reward: true"
    if config.eval.full_at_end and (config.eval.max_rows is None or config.train.max_epochs is None):
        why = "every evaluation takes all rows" if config.eval.max_rows is None else "a run without max_epochs has no last evaluation"
        yield f"eval.full_at_end has no effect: {why}"


def _of_seeds(config: RunConfig) -> Iterator[str]:
    if config.scheduler.seed not in (None, config.train.seed):
        yield f"scheduler.seed: {config.scheduler.seed} has no effect: every draw depends on train.seed, which is {config.train.seed}"


NOTICES: tuple[Callable[[RunConfig], Iterator[str]], ...] = (
    _of_training, _of_noise, _of_data, _of_engine, _of_idle_keys, _of_rewards, _of_seeds,
)  # fmt: skip
