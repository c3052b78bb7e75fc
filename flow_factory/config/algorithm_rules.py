"""Rules about the algorithm and what else the config says. Each yields what breaks it."""

import math
from collections.abc import Callable, Iterator

from flow_factory.config.algorithms import AWMConfig, CRDConfig, DGPOConfig, DPOConfig, DRaFTConfig, ForwardConfig, NFTConfig, SFTConfig
from flow_factory.config.base import show
from flow_factory.config.datasets import trained_on
from flow_factory.config.nodes import Problem
from flow_factory.config.plan import micro_batches_per_update
from flow_factory.config.run import RunConfig
from flow_factory.config.transition import GRPOGuardConfig, TransitionConfig

Rule = Callable[[RunConfig], Iterator[Problem]]


def rounded(value: int, by: int) -> int:
    """Up, to a multiple."""
    return -(-value // by) * by


def dynamics_fit(config: RunConfig) -> Iterator[Problem]:
    if not config.train.draws_noise(config.scheduler):
        return
    name = config.train.trainer_type
    if config.scheduler.dynamics_type == "ODE":
        text = f"{name} needs log-probabilities, and ODE has none; write Flow-SDE, Dance-SDE, Flash-SDE or CPS"
        yield Problem(("scheduler", "dynamics_type"), text)
    if config.scheduler.noise_level == 0 and config.train.stochastic:
        yield Problem(("scheduler", "noise_level"), f"{name} needs noise, and 0 is the ODE; write e.g. 0.7")
    if config.scheduler.dynamics_type == "CPS" and config.scheduler.noise_level > 1:
        text = f"{config.scheduler.noise_level:g} is more than the noise that CPS has to keep (1 makes all of it new); write 1 or less"
        yield Problem(("scheduler", "noise_level"), text)


def guard_is_defined(config: RunConfig) -> Iterator[Problem]:
    train = config.train
    if isinstance(train, GRPOGuardConfig) and train.reweight and config.scheduler.dynamics_type == "CPS":
        text = "true divides by |dt|, but the mean of CPS does not move by |dt|; write false, or scheduler.dynamics_type: Flow-SDE"
        yield Problem(("train", "reweight"), text)


def steps_weigh(config: RunConfig) -> Iterator[Problem]:
    train, here = config.train, ("train", "step_weight")
    if not isinstance(train, TransitionConfig) or train.step_weight == "none":
        return
    if isinstance(train, GRPOGuardConfig):
        text = f"{train.step_weight} undoes a step's 1 / std, which grpo-guard's ratio has lost already; write none, or trainer_type: grpo"
        yield Problem(here, text)
    elif config.scheduler.dynamics_type == "CPS" and train.step_weight == "noise":
        text = (
            "noise is for a log-probability that is divided by std^2, and CPS's is not; write rectified or none, or another dynamics_type"
        )
        yield Problem(here, text)


def branches_part(config: RunConfig) -> Iterator[Problem]:
    train, scheduler = config.train, config.scheduler
    if not train.draws_noise(scheduler) or scheduler.step_selection != "branch":
        return
    if scheduler.num_sde_steps != 1:
        text = f"{show(scheduler.num_sde_steps)}: branch has one stochastic step in a group, at which its samples part"
        yield Problem(("scheduler", "num_sde_steps"), f"{text}; write 1, or step_selection: stratified")
    many = scheduler.branches(train.group_size)
    if train.group_size % many:
        text = f"{many} must divide train.group_size={train.group_size}"
        near = next(n for n in range(min(many, train.group_size), 0, -1) if train.group_size % n == 0)
        yield Problem(("scheduler", "branches_per_seed"), f"{text}; write {near}")
    elif train.init_same_noise and many != train.group_size:
        text = f"{many} asks for several initial noises in a group, and train.init_same_noise: true for one"
        yield Problem(("scheduler", "branches_per_seed"), f"{text}; write null, or init_same_noise: false")


def gradient_is_of_present_weights(config: RunConfig) -> Iterator[Problem]:
    train = config.train
    if not isinstance(train, DRaFTConfig):
        return
    if train.draft_steps > (drawn := train.num_inference_steps - train.first_step):
        yield Problem(
            ("train", "draft_steps"), f"{train.draft_steps} is more than the {drawn} steps of a rollout; write {drawn} or 0 (all)"
        )
    if train.num_inner_epochs != 1:
        yield Problem(("train", "num_inner_epochs"), "draft learns from pictures of the current weights; write 1")
    batches = train.unique_sample_num_per_epoch * train.trained_batches_per_group // config.teams
    if (accumulated := micro_batches_per_update(config)) != batches:
        auto = train.gradient_accumulation_steps == "auto"
        key, now = ("gradient_step_per_epoch", train.gradient_step_per_epoch) if auto else ("gradient_accumulation_steps", accumulated)
        text = f"{now}: after the first step of an epoch its pictures come from earlier weights, and draft needs those of the current ones"
        yield Problem(("train", key), f"{text}; write {1 if auto else 'auto, with gradient_step_per_epoch: 1'}")
    for key in ("best_of_n", "drop_zero_variance", "reward_optimization_overlap"):
        if getattr(train, key):
            yield Problem(("train", key), f"draft has no advantages; write {'null' if key == 'best_of_n' else 'false'}")
    if config.model.context_parallel > 1:
        yield Problem(("model", "context_parallel"), "draft does not gather its gradient from the parts of a sequence; write 1")
    for index, reward in enumerate(config.rewards):
        if reward.transform is not None and reward.weight != 0:
            text = "what becomes of all scores together has no gradient of one; write null, and scale by weight"
            yield Problem(("rewards", index, "transform"), text)


def best_of_n_fits(config: RunConfig) -> Iterator[Problem]:
    train, keep = config.train, config.train.best_of_n
    if keep is None:
        return
    if isinstance(train, DPOConfig):
        yield Problem(("train", "best_of_n"), "dpo trains on the best and the worst of a group anyway; write null")
    elif keep % 2 or keep > train.group_size or keep % train.per_device_batch_size:
        by = math.lcm(2, train.per_device_batch_size)
        right = min(max(by, round(keep / by) * by), train.group_size // by * by)
        text = f"{keep} must be even, a multiple of train.per_device_batch_size={train.per_device_batch_size}, and at most group_size"
        yield Problem(("train", "best_of_n"), f"{text}={train.group_size}; write {right or 'null'}")


def silence_is_free(config: RunConfig) -> Iterator[Problem]:
    """Whether a sample of advantage 0 has no policy gradient."""
    train = config.train
    if train.drop_zero_variance and isinstance(train, (NFTConfig, CRDConfig)):
        text = f"{train.trainer_type} learns from samples of advantage 0 too; write false"
        yield Problem(("train", "drop_zero_variance"), text)
    if not train.drop_zero_variance or not isinstance(train, DGPOConfig) or list(best_of_n_fits(config)):
        return
    whole = train.trained_batches_per_group
    if micro_batches_per_update(config) % whole:
        text = f"an optimiser step would cut a group, which is {whole} micro-batches, and dgpo compares whole groups"
        yield Problem(("train", "drop_zero_variance"), f"{text}; write false, or gradient_accumulation_steps: {whole}")


def advantages_scale(config: RunConfig) -> Iterator[Problem]:
    train = config.train
    if isinstance(train, (NFTConfig, AWMConfig, CRDConfig)) and -train.adv_clip_range[0] != train.adv_clip_range[1]:
        text = f"{show(train.adv_clip_range)} must be symmetric: {train.trainer_type} divides by it; write {max(train.adv_clip_range):g}"
        yield Problem(("train", "adv_clip_range"), text)
    elif isinstance(train, (NFTConfig, AWMConfig, CRDConfig)) and train.adv_clip_range[1] > 100:
        text = f"{train.adv_clip_range[1]:g} leaves no advantage: {train.trainer_type} divides by it; write e.g. 5"
        yield Problem(("train", "adv_clip_range"), text)


def noise_levels_exist(config: RunConfig) -> Iterator[Problem]:
    train = config.train
    if not isinstance(train, ForwardConfig):
        return
    first, last = train.index_window
    least = 2 if train.time_sampling_strategy == "discrete_wo_init" or (
        train.time_sampling_strategy == "discrete_with_init" and train.num_train_timesteps != 1
    ) else 1  # fmt: skip
    if last - first < least and (train.time_sampling_strategy.startswith("discrete") or not train.num_train_timesteps):
        text = f"{show(train.timestep_range)} has {last - first} of the {train.num_inference_steps} steps and {least} are needed"
        yield Problem(("train", "timestep_range"), f"{text}; widen it, e.g. 1.0, or sample more steps")


def averages_are_kept(config: RunConfig) -> Iterator[Problem]:
    train = config.train
    if isinstance(train, AWMConfig) and train.ema_kl_beta > 0 and train.ema_decay == 0:
        yield Problem(
            ("train", "ema_kl_beta"), "is the distance to the averaged weights, and ema_decay: 0 keeps none; write e.g. ema_decay: 0.9"
        )


def pairs_are_given(config: RunConfig) -> Iterator[Problem]:
    train = config.train
    if isinstance(train, DPOConfig) and train.offline and (train.group_size, train.per_device_batch_size) != (2, 2):
        text = (
            f"{train.group_size} with per_device_batch_size {train.per_device_batch_size}: a given pair is a group of 2; write 2 for both"
        )
        yield Problem(("train", "group_size"), text)


def groups_differ(config: RunConfig) -> Iterator[Problem]:
    train = config.train
    if train.init_same_noise and not train.stochastic:
        text = f"true makes every group one picture: {train.trainer_type} rolls out by the ODE, so nothing but the first noise differs"
        yield Problem(("train", "init_same_noise"), f"{text}; write false")


def group_has_advantage(config: RunConfig) -> Iterator[Problem]:
    train = config.train
    if train.group_size < train.smallest_group:
        right = rounded(train.smallest_group, train.per_device_batch_size)
        text = f"{train.group_size} leaves no advantage: {train.trainer_type} compares samples of a row; write {right} or more, e.g. 16"
        yield Problem(("train", "group_size"), text)


def rewards_count(config: RunConfig) -> Iterator[Problem]:
    if isinstance(config.train, SFTConfig) and config.rewards:
        text = "sft learns from the column target, and uses no reward; write eval_rewards, or delete it"
        yield Problem(("rewards",), text)
    if config.train.given or not config.train.judged:
        return
    for dataset in trained_on(config):
        if sum(abs(weight) for reward in dataset.config.rewards if isinstance(weight := reward.weight, float)) >= 1e-6:
            continue
        if dataset.name:
            text = "no reward with a weight other than 0 scores its samples, so nothing is learned from it; leave its train: out, or see"
            yield Problem(dataset.keys, f"{text} rewards.N.applicable_datasets")
        elif isinstance(config.rewards[0].weight, float):
            text = f"{config.rewards[0].weight:g} leaves every advantage 0, so nothing is learned; write e.g. 1"
            yield Problem(("rewards", 0, "weight"), text)


def steps_are_small(config: RunConfig) -> Iterator[Problem]:
    train = config.train
    if train.learning_rate > 1:
        text = f"{train.learning_rate:g} moves a weight by as much at every step, whatever its gradient; write e.g. 1.0e-4"
        yield Problem(("train", "learning_rate"), text)
    elif train.learning_rate * train.adam_weight_decay >= 1:
        text = f"{train.adam_weight_decay:g} x learning_rate {train.learning_rate:g} takes all of a weight at every step; write e.g. 1.0e-4"
        yield Problem(("train", "adam_weight_decay"), text)


ALGORITHM_RULES: tuple[Rule, ...] = (
    dynamics_fit,
    guard_is_defined,
    steps_weigh,
    branches_part,
    gradient_is_of_present_weights,
    best_of_n_fits,
    silence_is_free,
    advantages_scale,
    noise_levels_exist,
    averages_are_kept,
    pairs_are_given,
    groups_differ,
    group_has_advantage,
    rewards_count,
    steps_are_small,
)
