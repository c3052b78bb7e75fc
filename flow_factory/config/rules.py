"""Every rule that needs more than one key. Each yields what breaks it."""

import math
from collections.abc import Iterator, Sequence
from functools import partial

from flow_factory.config.algorithm_rules import ALGORITHM_RULES, Rule, best_of_n_fits, rounded
from flow_factory.config.base import show
from flow_factory.config.datasets import datasets_fit
from flow_factory.config.distillation_rules import DISTILLATION_RULES
from flow_factory.config.engine_rules import ENGINE_RULES
from flow_factory.config.gate_rules import GATE_RULES
from flow_factory.config.lora_rules import LORA_RULES
from flow_factory.config.media_arguments import columns_fit
from flow_factory.config.memory_rules import MEMORY_RULES
from flow_factory.config.model import AUTO
from flow_factory.config.monitor_rules import MONITOR_RULES
from flow_factory.config.network_rules import NETWORK_RULES
from flow_factory.config.nodes import Keys, Problem
from flow_factory.config.overlap_rules import OVERLAP_RULES
from flow_factory.config.plan import plan_of
from flow_factory.config.rewards import RewardConfig
from flow_factory.config.run import RunConfig
from flow_factory.config.translate import deals, in_steps, parts_of


def broken(config: RunConfig) -> list[Problem]:
    """All that is wrong with a configuration whose values are right one by one."""
    return [problem for rule in RULES for problem in rule(config)]


def batches_divide(config: RunConfig) -> Iterator[Problem]:
    train, rows = config.train, config.train.unique_sample_num_per_epoch
    size, batch = train.group_size, train.per_device_batch_size
    if size % batch:
        works = max(n for n in range(1, min(batch, size) + 1) if size % n == 0)
        text = (
            f"{size} must be a multiple of train.per_device_batch_size={batch}; {_around(size, batch)}, or per_device_batch_size: {works}"
        )
        yield Problem(("train", "group_size"), text)
        return
    if list(best_of_n_fits(config)):
        return
    if not deals(config, rows):
        many = f"{rows} rows make {rows * (size // batch)} micro-batches"
        if train.trained_batches_per_group != size // batch:
            many += f", {rows * train.trained_batches_per_group} of them trained on"
        ways = range(rows, 0, -1), range(rows, rows + config.teams)
        near = " or ".join(str(n) for way in ways for n in list(filter(partial(deals, config), way))[:1])
        text = f"{many}, which do not divide over {_takers(config)}; write {near}"
        yield Problem(("train", "unique_sample_num_per_epoch"), text)
        return
    batches = rows * train.trained_batches_per_group // config.teams
    if in_steps(config, rows):
        return
    key = "gradient_step_per_epoch" if train.gradient_accumulation_steps == "auto" else "gradient_accumulation_steps"
    divisors = sorted({n for k in range(1, math.isqrt(batches) + 1) if batches % k == 0 for n in (k, batches // k)})
    below = [n for n in divisors if n < parts_of(config)][-1:]
    above = [n for n in divisors if n > parts_of(config)][:1]
    right = " or ".join(map(str, below + above))
    yield Problem(
        ("train", key), f"{parts_of(config)} must divide the {batches} micro-batches that a process trains on in an epoch; write {right}"
    )


def rollouts_divide(config: RunConfig) -> Iterator[Problem]:
    drawn, batch = config.train.rollout_batch_size, config.train.per_device_batch_size
    if not isinstance(drawn, int) or list(batches_divide(config)):
        return
    here = plan_of(config).rolled.of_a_group
    works = [n * batch for n in range(1, here + 1) if here % n == 0]
    if drawn not in works:
        near = min(works, key=lambda n: (abs(n - drawn), n))
        text = f"{drawn} does not divide the {here * batch} samples of a group that a process draws, in micro-batches of {batch}"
        yield Problem(("train", "rollout_batch_size"), f"{text}; write {near}")


def steps_exist(config: RunConfig) -> Iterator[Problem]:
    total, scheduler = config.train.num_inference_steps, config.scheduler
    first = config.train.first_step
    steps = scheduler.stochastic_steps(total, first)
    if not config.train.draws_noise(scheduler):
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
    if train.max_epochs is not None:
        return
    if isinstance(train.lr_warmup_steps, float) and train.lr_total_steps is None:
        text = f"{train.lr_warmup_steps:g} is a share of a run that has no end; set train.max_epochs, or write a number of steps"
        yield Problem(("train", "lr_warmup_steps"), text)
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
    elif model.resume_path is not None and "://" in model.resume_path:
        text = f"{show(model.resume_path)}: a checkpoint is read from disk; download it, and name the folder"
        yield Problem(("model", "resume_path"), text)
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


def formats_are_of_loras(config: RunConfig) -> Iterator[Problem]:
    if config.log.save_formats and config.model.finetune_type == "full":
        yield Problem(("log", "save_formats"), "these are formats of LoRAs, and model.finetune_type is full; write [], or lora")


def profile_is_reached(config: RunConfig) -> Iterator[Problem]:
    last, profile = config.train.max_epochs, config.profile
    if profile is not None and last is not None and profile.epoch > last:
        yield Problem(("profile", "epoch"), f"{profile.epoch} is more than the {last} epochs of the run (train.max_epochs); write {last}")


def precisions_fit(config: RunConfig) -> Iterator[Problem]:
    if config.mixed_precision == "no" and config.model.finetune_type == "full" and config.model.master_weight_dtype != "fp32":
        text = f"{config.model.master_weight_dtype} weights cannot compute beside float32 parts; write fp32, or mixed_precision: bf16"
        yield Problem(("model", "master_weight_dtype"), text)


def reward_names_differ(config: RunConfig) -> Iterator[Problem]:
    for section, rewards in (("rewards", config.rewards), ("eval_rewards", config.eval_rewards or ())):
        yield from names_differ(section, rewards)


def names_differ(section: str, rewards: Sequence[RewardConfig]) -> Iterator[Problem]:
    names = [reward.name for reward in rewards]
    for index, name in enumerate(names):
        if name in names[:index]:
            taken = f"{name!r} is the name of {section}.{names.index(name)} too"
            yield Problem((section, index, "name"), f"{taken}; write another, e.g. {name}_{index + 1}")


RULES: tuple[Rule, ...] = (
    batches_divide,
    rollouts_divide,
    steps_exist,
    schedules_end,
    resume_is_whole,
    formats_are_of_loras,
    *LORA_RULES,
    profile_is_reached,
    precisions_fit,
    reward_names_differ,
    datasets_fit,
    columns_fit,
    *ALGORITHM_RULES,
    *ENGINE_RULES,
    *MEMORY_RULES,
    *OVERLAP_RULES,
    *NETWORK_RULES,
    *DISTILLATION_RULES,
    *GATE_RULES,
    *MONITOR_RULES,
)


def _takers(config: RunConfig) -> str:
    many, team = config.num_processes, config.model.context_parallel
    return f"num_processes={many}" if team == 1 else f"num_processes={many} / model.context_parallel={team}"


def _around(value: int, by: int) -> str:
    below, above = value // by * by, rounded(value, by)
    return f"write {below} or {above}" if below else f"write {above}"
