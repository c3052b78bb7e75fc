"""Keys whose meaning here follows from others: rounded, translated or worked out, each with the line that says so."""

from itertools import chain, count

from flow_factory.config.algorithm_rules import best_of_n_fits, rounded
from flow_factory.config.engine_rules import engine_of_file
from flow_factory.config.plan import plan_of
from flow_factory.config.run import RunConfig
from flow_factory.config.transition import DPPOConfig

Translated = tuple[RunConfig, tuple[str, ...]]
"""A configuration, and the lines that say what was changed."""


def rounded_up(config: RunConfig) -> Translated:
    """Under `data.sampler_type: auto`, batch sizes that divide, and the line that says what was adjusted."""
    train = config.train
    if config.data.sampler_type != "auto":
        return config, ()
    group = rounded(train.group_size, train.per_device_batch_size)
    rows = train.unique_sample_num_per_epoch
    bigger = config.model_copy(update={"train": train.model_copy(update={"group_size": group})})
    while not (deals(bigger, rows) and in_steps(bigger, rows)):
        rows += 1
    wanted = {"group_size": group, "unique_sample_num_per_epoch": rows}
    changed = {key: value for key, value in wanted.items() if value != getattr(train, key)}
    if not changed:
        return config, ()
    notice = ", ".join(f"train.{key} {getattr(train, key)} -> {value}" for key, value in changed.items())
    return config.model_copy(update={"train": train.model_copy(update=changed)}), (f"data.sampler_type: auto rounded up {notice}",)


def recomputed(config: RunConfig) -> Translated:
    """Sets `train.enable_gradient_checkpointing` if the launcher's file asks for it."""
    engine = engine_of_file(config)
    if engine is None or not engine.recompute or config.train.enable_gradient_checkpointing:
        return config, ()
    train = config.train.model_copy(update={"enable_gradient_checkpointing": True})
    notice = f"config_file: {config.config_file} says fsdp_activation_checkpointing, so train.enable_gradient_checkpointing is true"
    return config.model_copy(update={"train": train}), (notice,)


def trained_alone(config: RunConfig) -> Translated:
    """Without target components of which `target_modules` names no layer."""
    model = config.model
    owners = {"transformer", "transformer_2", *model.target_components}
    named = [entry.partition(".")[0] for entry in model.target_modules]
    kept = tuple(c for c in model.target_components if any(name == c or name not in owners for name in named))
    left = [c for c in model.target_components if c not in kept]
    if not left or not kept:
        return config, ()
    notice = f"model.target_components: {', '.join(left)} is not trained: target_modules names layers of {', '.join(kept)} alone"
    return config.model_copy(update={"model": model.model_copy(update={"target_components": kept})}), (notice,)


def warmed_up(config: RunConfig) -> Translated:
    """Turns the warm-up into whole optimiser steps that end before the run does."""
    train = config.train
    total = train.lr_total_steps
    if total is None and train.max_epochs is not None and divides(config):
        total = train.max_epochs * plan_of(config).optimiser_steps_per_epoch
    if total is None:
        return config, ()
    wanted = train.lr_warmup_steps
    steps = int(wanted * total) if isinstance(wanted, float) else min(wanted, total // 2)
    if steps == wanted:
        return config, ()
    notice = f"train.lr_warmup_steps: {wanted} -> {steps}, for the schedule has {total} optimiser steps"
    return config.model_copy(update={"train": train.model_copy(update={"lr_warmup_steps": steps})}), (notice,)


def masked_exactly(config: RunConfig) -> Translated:
    """With the mask's distance by its own name: the public Flow-Factory divides it by 2 std^2, unlike its `kl_type` of the same name."""
    train = config.train
    if not isinstance(train, DPPOConfig) or train.kl_mask_type != "x-based":
        return config, ()
    notice = "train.kl_mask_type: x-based -> exact, which is what it computes: the distance of means divided by 2 std^2"
    return config.model_copy(update={"train": train.model_copy(update={"kl_mask_type": "exact"})}), (notice,)


def by_ode(config: RunConfig) -> Translated:
    """Lets rollouts follow the ODE if nothing else is written and the algorithm allows it."""
    if not config.train.by_dynamics or "dynamics_type" in config.scheduler.model_fields_set:
        return config, ()
    return config.model_copy(update={"scheduler": config.scheduler.model_copy(update={"dynamics_type": "ODE"})}), ()


def whole_pass(config: RunConfig, rows: int) -> Translated:
    """With the rows of an epoch where it is a pass over all of them: the largest number, or else the least, that can be dealt out."""
    train = config.train
    if train.unique_sample_num_per_epoch > 0:
        return config, ()
    many = next(n for n in chain(range(rows, 0, -1), count(rows + 1)) if deals(config, n) and in_steps(config, n))
    notice = f"train.unique_sample_num_per_epoch: an epoch is {many} of the {rows} rows, which divide over processes and optimiser steps"
    lines = (f"{notice}; the next goes on where it ends",) if many != rows else ()
    config, more = translated(config.model_copy(update={"train": train.model_copy(update={"unique_sample_num_per_epoch": many})}))
    return config, lines + more


def translated(config: RunConfig) -> Translated:
    """All of them, one after the other."""
    lines: tuple[str, ...] = ()
    for step in (rounded_up, recomputed, trained_alone, warmed_up, masked_exactly, by_ode):
        config, notice = step(config)
        lines += notice
    return config, lines


def divides(config: RunConfig) -> bool:
    """Whether an epoch's batches can be dealt out."""
    train, rows = config.train, config.train.unique_sample_num_per_epoch
    whole = train.group_size % train.per_device_batch_size == 0
    return whole and rows > 0 and not list(best_of_n_fits(config)) and deals(config, rows) and in_steps(config, rows)


def deals(config: RunConfig, rows: int) -> bool:
    """Whether so many rows' micro-batches divide over the processes, those rolled out and those trained on."""
    train = config.train
    numbers = train.group_size // train.per_device_batch_size, train.trained_batches_per_group
    return all(rows * n % config.teams == 0 for n in numbers)


def in_steps(config: RunConfig, rows: int) -> bool:
    """Whether a process's share of them divides over the optimiser steps."""
    return rows * config.train.trained_batches_per_group // config.teams % parts_of(config) == 0


def parts_of(config: RunConfig) -> int:
    """What must divide a process's micro-batches."""
    train = config.train
    return train.gradient_step_per_epoch if train.gradient_accumulation_steps == "auto" else train.gradient_accumulation_steps
