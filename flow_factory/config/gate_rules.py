"""Rules about GARDO's gate, moving reference and diversity. Each yields what breaks it."""

from collections.abc import Iterator

from flow_factory.config.algorithm_rules import Rule
from flow_factory.config.base import show
from flow_factory.config.datasets import trained_on
from flow_factory.config.gate import GateConfig
from flow_factory.config.nodes import Problem
from flow_factory.config.run import RunConfig


def gate_fits(config: RunConfig) -> Iterator[Problem]:
    train = config.train
    if not isinstance(train, GateConfig):
        return
    for key in ("kl_gate_share", "kl_reset_threshold", "kl_reset_epochs"):
        if getattr(train, key) is not None and train.kl_beta == 0:
            yield Problem(("train", key), "is about the KL term, and kl_beta: 0 leaves none; write e.g. kl_beta: 0.04, or null")
    share, (low, high) = train.kl_gate_share, train.kl_gate_bounds
    if share is None:
        return
    if not low <= share <= high:
        yield Problem(("train", "kl_gate_share"), f"{share:g} is outside of kl_gate_bounds {show([low, high])}; write e.g. {low:g}")
    if train.best_of_n is not None:
        text = f"{train.best_of_n}: the gate takes a share of all samples, and best_of_n drops some of them; write null"
        yield Problem(("train", "best_of_n"), text)
    if train.reward_optimization_overlap:
        text = "true: the gate compares the scores of all samples, which the first group that is trained on does not wait for; write false"
        yield Problem(("train", "reward_optimization_overlap"), text)
    for dataset in trained_on(config):
        watched = [reward.name for reward in dataset.config.rewards if reward.weight == 0 and reward.name != train.diversity_reward]
        if not watched:
            text = "ranks the trained rewards beside watched ones, and there are none" + f" for {dataset.name}" * bool(dataset.name)
            yield Problem(("train", "kl_gate_share"), f"{text}; add rewards with weight: 0, e.g. aesthetic and ImageReward")


def diversity_fits(config: RunConfig) -> Iterator[Problem]:
    train, here = config.train, ("train", "diversity_reward")
    name = train.diversity_reward if isinstance(train, GateConfig) else None
    if name is None:
        return
    if train.advantage_aggregation != "gardo":
        text = f"{name}: {train.advantage_aggregation} scales no advantage by it; write advantage_aggregation: gardo, or null"
        yield Problem(here, text)
    for dataset in trained_on(config):
        mine = next((reward for reward in dataset.config.rewards if reward.name == name), None)
        if mine is None:
            of = f" of {dataset.name}" * bool(dataset.name)
            yield Problem(here, f"no reward{of} is named {show(name)}; add one, e.g. {{reward_model: diversity, weight: 0}}")
            return
        if mine.weight != 0:
            index = next(k for k, reward in enumerate(config.rewards) if reward.name == name)
            yield Problem(("rewards", index, "weight"), f"{mine.weight}: it scales the others' advantage, and has none itself; write 0")
            return


GATE_RULES: tuple[Rule, ...] = (gate_fits, diversity_fits)
