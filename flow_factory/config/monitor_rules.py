"""Rules about `monitor:` and `log.keep_best`. Each yields what breaks it."""

import re
from collections.abc import Collection, Iterator

from flow_factory.config.algorithm_rules import Rule
from flow_factory.config.base import show
from flow_factory.config.datasets import datasets_of
from flow_factory.config.nodes import Keys, Problem
from flow_factory.config.run import RunConfig
from flow_factory.utils.registry import nearest

WATCHED = ("saturation", "high_frequency", "diversity")
"""Rewards that are there to be watched."""


def watches_see_something(config: RunConfig) -> Iterator[Problem]:
    for k, watch in enumerate(config.monitor):
        here: Keys = ("monitor", k, "metric")
        yield from _of_metric(config, watch.metric, here)
        if watch.key in [other.key for other in config.monitor[:k]]:
            yield Problem(here, f"{watch.metric} is watched by the same condition above; keep one")
        last = config.train.max_epochs
        if last is not None and watch.from_epoch >= last:
            yield Problem(("monitor", k, "from_epoch"), f"{watch.from_epoch} is not before the run's end, train.max_epochs: {last}")


def _of_metric(config: RunConfig, metric: str, here: Keys) -> Iterator[Problem]:
    """What is wrong with a name, as far as the config knows what is logged."""
    phase, _, name = metric.partition("/")
    if phase not in ("train", "eval") or not name:
        yield Problem(here, f"{show(metric)}: a metric of an epoch begins with train/, one of an evaluation with eval/")
        return
    if phase == "eval" and config.eval.eval_freq == 0:
        yield Problem(here, f"{metric}: there is no evaluation (eval.eval_freq: 0); write e.g. eval_freq: 5")
    section = "rewards" if phase == "train" or config.eval_rewards is None else "eval_rewards"
    found = re.fullmatch(r"(?:[^/]+/)?(?:reward|transformed)_(.+)_(?:mean|std)", name)
    names = {reward.name for dataset in datasets_of(config) for reward in getattr(dataset.config, section) or ()}
    if found is not None and found[1] not in names:
        known = f"{nearest(found[1], sorted(names)).strip()} Known: {', '.join(sorted(names)) or 'none'}".strip()
        advice = f"add {{reward_model: {found[1]}, weight: 0}} to it" if found[1] in WATCHED else known
        yield Problem(here, f"{metric}: no reward of {section} is named {show(found[1])}; {advice}")
    if metric in ("train/kl_div", "train/kl_loss") and getattr(config.train, "kl_beta", 0.0) == 0:
        yield Problem(here, f"{metric} is logged where train.kl_beta is above 0; write e.g. kl_beta: 1.0e-6 to measure it alone")


def back_needs_best_checkpoint(config: RunConfig) -> Iterator[Problem]:
    best = config.log.keep_best
    if best is not None:
        names: Collection[str] = ("eval/loss", "eval/margin", "eval/pair_accuracy")
        if not re.fullmatch(r"eval/([^/]+/)?(reward_(.+_)?mean|loss|margin|pair_accuracy)", best):
            text = f"{best}: wants a metric of an evaluation by which weights are better: eval/reward_<name>_mean, {', '.join(names)}"
            yield Problem(("log", "keep_best"), text)
        else:
            yield from _of_metric(config, best, ("log", "keep_best"))
    for k, watch in enumerate(config.monitor):
        if watch.do == "back" and best is None:
            yield Problem(("monitor", k, "do"), "back goes back to the best checkpoint; set log.keep_best, e.g. eval/reward_mean")


MONITOR_RULES: tuple[Rule, ...] = (watches_see_something, back_needs_best_checkpoint)
