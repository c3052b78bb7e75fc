"""Every rule that needs more than one key. Each yields what breaks it."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from flow_factory.config.algorithm_rules import ALGORITHM_RULES, Rule, best_of_n_fits, rounded
from flow_factory.config.base import show
from flow_factory.config.engine import found
from flow_factory.config.engine_rules import ENGINE_RULES, engine_said
from flow_factory.config.memory_rules import MEMORY_RULES
from flow_factory.config.model import AUTO
from flow_factory.config.plan import plan_of
from flow_factory.config.run import RunConfig
from flow_factory.config.text import Keys, Problem


def broken(config: RunConfig) -> list[Problem]:
    """All that is wrong with a configuration whose values are right one by one."""
    return [problem for rule in RULES for problem in rule(config)]


IDLE = {
    "preprocessing_batch_size": "rows are encoded one by one, and each is written as soon as it is",
    "dataloader_num_workers": "encoded rows are read from the cache, without worker processes",
    "enable_preprocess": "rows are always encoded ahead, once",
    "preprocess_parallelism": "the first process of a machine encodes, the others read its cache",
}
"""Keys of `data:` that other implementations need and this one does not, and why."""


def notices(config: RunConfig) -> tuple[str, ...]:
    """Keys that were written and have no effect, and a choice that shows in the pictures, a line each."""
    lines = []
    train = config.train
    if train.ema_decay and train.max_epochs is not None and train.max_epochs < train.ema_update_interval:
        lines.append(
            f"train.ema_update_interval: {train.ema_update_interval} is more than the {train.max_epochs} epochs of the run: the average, "
            "which is what is evaluated and saved, stays at the untrained weights; write 1, or ema_decay: 0"
        )
    last = config.train.num_inference_steps - 1
    if config.train.stochastic and last in config.scheduler.stochastic_steps(last + 1):
        lines.append(f"scheduler.sde_steps: noise of step {last}, the last one, stays in the pictures; without {last} it does not")
    if not train.stochastic and "dynamics_type" in config.scheduler.model_fields_set and config.scheduler.dynamics_type != "ODE":
        lines.append(f"scheduler.dynamics_type: {config.scheduler.dynamics_type} has no effect: {train.trainer_type} rolls out by the ODE")
    if config.data.force_reprocess:
        lines.append("data.force_reprocess is not needed: rows are cached by content, so what has changed is always encoded anew")
    if config.data.sampler_type not in (None, "auto"):
        lines.append(f"data.sampler_type: {config.data.sampler_type} has no effect: a group always lives on one process")
    engine = config.engine
    if config.config_file is not None and config.num_processes == 1 and engine.kind != "fsdp":
        lines.append(f"config_file: {config.config_file} has no effect on one process")
    if config.config_file is not None and (file := found(config.config_file)) != Path(config.config_file):
        lines.append(f"config_file: there is no {config.config_file}; using Flow-Factory's own {file.name}")
    lines += [f"config_file: {config.config_file}: {line}" for line in engine.idle]
    if engine.stage == 3 and config.num_processes > 1 and not train.enable_gradient_checkpointing:
        lines.append(
            f"{engine.name} keeps gathered weights from a forward to its backward; train.enable_gradient_checkpointing: true does not"
        )
    for key, why in IDLE.items():
        if getattr(config.data, key) != type(config.data).model_fields[key].default:
            lines.append(f"data.{key} has no effect: {why}")
    if any(reward.async_reward or reward.num_workers != 1 for reward in (*config.rewards, *(config.eval_rewards or ()))):
        lines.append("rewards: async_reward and num_workers have no effect yet: rewards are scored after the rollouts, in this process")
    if config.scheduler.seed not in (None, config.train.seed):
        lines.append(
            f"scheduler.seed: {config.scheduler.seed} has no effect: every draw depends on train.seed, which is {config.train.seed}"
        )
    return tuple(lines)


def rounded_up(config: RunConfig) -> tuple[RunConfig, tuple[str, ...]]:
    """Under `data.sampler_type: auto`, batch sizes that divide, and the line that says what was adjusted."""
    train = config.train
    if config.data.sampler_type != "auto":
        return config, ()
    group = rounded(train.group_size, train.per_device_batch_size)
    rows = train.unique_sample_num_per_epoch
    bigger = config.model_copy(update={"train": train.model_copy(update={"group_size": group})})
    while not (_deals(bigger, rows) and _steps(bigger, rows)):
        rows += 1
    wanted = {"group_size": group, "unique_sample_num_per_epoch": rows}
    changed = {key: value for key, value in wanted.items() if value != getattr(train, key)}
    if not changed:
        return config, ()
    said = ", ".join(f"train.{key} {getattr(train, key)} -> {value}" for key, value in changed.items())
    return config.model_copy(update={"train": train.model_copy(update=changed)}), (f"data.sampler_type: auto rounded up {said}",)


def recomputed(config: RunConfig) -> tuple[RunConfig, tuple[str, ...]]:
    """With `train.enable_gradient_checkpointing` where the launcher's file asks for it, and the line that says so."""
    engine = engine_said(config)
    if engine is None or not engine.recompute or config.train.enable_gradient_checkpointing:
        return config, ()
    train = config.train.model_copy(update={"enable_gradient_checkpointing": True})
    said = f"config_file: {config.config_file} says fsdp_activation_checkpointing, so train.enable_gradient_checkpointing is true"
    return config.model_copy(update={"train": train}), (said,)


def batches_divide(config: RunConfig) -> Iterator[Problem]:
    train, rows = config.train, config.train.unique_sample_num_per_epoch
    size, batch = train.group_size, train.per_device_batch_size
    if size % batch:
        yield Problem(("train", "group_size"), f"{size} must be a multiple of train.per_device_batch_size={batch}; {_around(size, batch)}")
        return
    if list(best_of_n_fits(config)):
        return
    if not _deals(config, rows):
        many = f"{rows} rows make {rows * (size // batch)} micro-batches"
        if train.trained_batches_per_group != size // batch:
            many += f", {rows * train.trained_batches_per_group} of them trained on"
        ways = range(rows, 0, -1), range(rows, rows + config.teams)
        near = " or ".join(str(n) for way in ways for n in list(filter(partial(_deals, config), way))[:1])
        text = f"{many}, which do not divide over {_takers(config)}; write {near}"
        yield Problem(("train", "unique_sample_num_per_epoch"), text)
        return
    batches = rows * train.trained_batches_per_group // config.teams
    if _steps(config, rows):
        return
    key = "gradient_step_per_epoch" if train.gradient_accumulation_steps == "auto" else "gradient_accumulation_steps"
    divisors = [n for n in range(1, batches + 1) if batches % n == 0]
    below = [n for n in divisors if n < _parts(config)][-1:]
    above = [n for n in divisors if n > _parts(config)][:1]
    right = " or ".join(map(str, below + above))
    yield Problem(
        ("train", key), f"{_parts(config)} must divide the {batches} micro-batches that a process trains on in an epoch; write {right}"
    )


def steps_exist(config: RunConfig) -> Iterator[Problem]:
    total, scheduler = config.train.num_inference_steps, config.scheduler
    first = config.train.first_step
    steps = scheduler.stochastic_steps(total, first)
    if not config.train.stochastic:
        return
    if total - first < 2:
        of = f"{total}, of which strength {config.train.call['strength']} leaves {total - first}," if first else f"{total}"
        text = f"{of} leaves no stochastic step (the last one is deterministic); write {'more' if first else '2 or more'}"
        yield Problem(("train", "num_inference_steps"), text)
        return
    here: Keys = ("scheduler", "sde_steps")
    inside = sorted({step for step in steps if first <= step < total})
    if list(steps) != inside or not steps:
        right = show(inside) if inside else "null"
        yield Problem(here, f"wants different steps in rising order, from {first} to {total - 1}, got {show(steps)}; write {right}")
    elif total - 1 in steps and scheduler.dynamics_type == "CPS":
        yield Problem(
            here,
            f"CPS adds no noise at the last step, so {total - 1} cannot be trained; write {show(inside[:-1]) if inside[1:] else 'null'}",
        )
    if scheduler.step_selection == "fraction" and not scheduler.trained_steps(total, first):
        text = f"{scheduler.sde_fraction:g} of the {len(steps)} steps that may be stochastic is none; write {1 / len(steps):.2g} or more"
        yield Problem(("scheduler", "sde_fraction"), text)
    elif scheduler.num_sde_steps is not None and scheduler.num_sde_steps > len(steps):
        text = f"{scheduler.num_sde_steps} is more than the {len(steps)} steps that may be stochastic; write {len(steps)} or null"
        yield Problem(("scheduler", "num_sde_steps"), text)


def schedules_end(config: RunConfig) -> Iterator[Problem]:
    train = config.train
    total = train.lr_total_steps
    if total is None and train.max_epochs is not None and not [*batches_divide(config), *best_of_n_fits(config)]:
        total = train.max_epochs * plan_of(config).optimiser_steps_per_epoch
    if total is not None and train.lr_warmup_steps >= total:
        text = f"{train.lr_warmup_steps} must be less than the {total} optimiser steps of the schedule; write e.g. {total // 10}"
        yield Problem(("train", "lr_warmup_steps"), text)
    if train.max_epochs is not None:
        return
    if train.lr_scheduler != "constant" and train.lr_total_steps is None:
        yield Problem(
            ("train", "lr_scheduler"), f"{train.lr_scheduler} needs an end; set train.max_epochs or train.lr_total_steps, or write constant"
        )
    if train.ema_decay and train.ema_decay_schedule.endswith("cosine") and train.total_steps is None:
        text = f"{train.ema_decay_schedule} needs an end; set train.max_epochs or train.total_steps, or write power"
        yield Problem(("train", "ema_decay_schedule"), text)


def resume_is_whole(config: RunConfig) -> Iterator[Problem]:
    model = config.model
    if model.resume_type is not None and model.resume_path is None:
        yield Problem(("model", "resume_type"), "there is nothing to resume from; set model.resume_path, or write null")
    if model.resume_path == AUTO:
        yield from _goes_on(config)
    elif model.resume_type in ("lora", "full") and model.resume_path is not None and model.resume_type != model.finetune_type:
        text = f"{model.resume_type} weights do not fit model.finetune_type: {model.finetune_type}; write {model.finetune_type} for both"
        yield Problem(("model", "resume_type"), text)


def _goes_on(config: RunConfig) -> Iterator[Problem]:
    here: Keys = ("model", "resume_path")
    if config.log.run_name is None:
        yield Problem(here, "auto finds this run's folder by its name; set log.run_name")
    if config.log.save_model_only:
        yield Problem(here, "auto goes on from a training state; set log.save_model_only: false, or no checkpoint has one")
    if config.model.resume_type in ("lora", "full"):
        yield Problem(
            ("model", "resume_type"), f"resume_path: auto goes on from a training state, not from {config.model.resume_type}; write null"
        )


def precisions_fit(config: RunConfig) -> Iterator[Problem]:
    if config.mixed_precision == "no" and config.model.finetune_type == "full" and config.model.master_weight_dtype != "fp32":
        text = f"{config.model.master_weight_dtype} weights cannot compute beside float32 parts; write fp32, or mixed_precision: bf16"
        yield Problem(("model", "master_weight_dtype"), text)


def reward_names_differ(config: RunConfig) -> Iterator[Problem]:
    for section, rewards in (("rewards", config.rewards), ("eval_rewards", config.eval_rewards or ())):
        names = [reward.name for reward in rewards]
        for index, name in enumerate(names):
            if name in names[:index]:
                taken = f"{name!r} is the name of {section}.{names.index(name)} too"
                yield Problem((section, index, "name"), f"{taken}; write another, e.g. {name}_{index + 1}")


RULES: tuple[Rule, ...] = (
    batches_divide,
    steps_exist,
    schedules_end,
    resume_is_whole,
    precisions_fit,
    reward_names_differ,
    *ALGORITHM_RULES,
    *ENGINE_RULES,
    *MEMORY_RULES,
)


def _takers(config: RunConfig) -> str:
    many, team = config.num_processes, config.model.context_parallel
    return f"num_processes={many}" if team == 1 else f"num_processes={many} / model.context_parallel={team}"


def _deals(config: RunConfig, rows: int) -> bool:
    """Whether so many rows' micro-batches divide over the processes, those rolled out and those trained on."""
    train = config.train
    numbers = train.group_size // train.per_device_batch_size, train.trained_batches_per_group
    return all(rows * n % config.teams == 0 for n in numbers)


def _steps(config: RunConfig, rows: int) -> bool:
    """Whether a process's share of them divides over the optimiser steps."""
    return rows * config.train.trained_batches_per_group // config.teams % _parts(config) == 0


def _parts(config: RunConfig) -> int:
    """What must divide a process's micro-batches."""
    train = config.train
    return train.gradient_step_per_epoch if train.gradient_accumulation_steps == "auto" else train.gradient_accumulation_steps


def _around(value: int, by: int) -> str:
    below, above = value // by * by, rounded(value, by)
    return f"write {below} or {above}" if below else f"write {above}"
