"""What a watched metric out of bounds means, and what to do: the words of `monitor:`."""

import re

from flow_factory.config import RunConfig
from flow_factory.config.monitor import WatchConfig
from flow_factory.reporting.metric_names import explained
from flow_factory.rewards import REWARDS

Words = tuple[str, str]
"""(what it means, what to do)"""

_HOLD = "hold the policy closer to its reference (train.kl_beta, train.kl_gate_share), lower train.learning_rate, or stop earlier"
_EXPLOITS = f"look at the pictures; add the held-out reward to rewards: with a weight, or {_HOLD}"
_OF_REWARDS: dict[str, tuple[tuple[str, ...], Words]] = {
    "diversity": (
        ("falls", "below"),
        ("the samples of a group become similar", f"{_HOLD}, or scale advantages by diversity (train.advantage_aggregation: gardo)"),
    ),
    "saturation": (
        ("rises", "above"),
        ("colours become more saturated, as when an aesthetic reward is exploited", f"look at the pictures, and {_HOLD}"),
    ),
    "high_frequency": (
        ("rises", "above"),
        ("pictures gain noise, grids or over-sharpened edges, as when a reward model is exploited", f"look at the pictures, and {_HOLD}"),
    ),
}
"""Rewards that are there to be watched -> the conditions under which they mean something, and what."""
_OTHERS: tuple[tuple[str, tuple[str, ...], Words], ...] = (
    (
        r"train/(.+/)?zero_variance_share",
        ("rises", "above"),
        (
            "the samples of a group have the same score, so nothing is learned from them",
            "take prompts that are neither solved nor impossible, a larger train.group_size, or a reward with finer steps",
        ),
    ),
    (
        r"train/(kl_div|kl_loss|kl_held|ema_kl_div|ema_kl_loss|policy_shift)",
        ("rises", "above"),
        ("the policy is far from the weights that it started from", "raise train.kl_beta, lower train.learning_rate, or stop earlier"),
    ),
    (
        r"train/(ratio_std|ratio_error|approx_kl|clip_frac\w*|kl_old\w*|far_frac\w*)",
        ("rises", "above"),
        ("the updates of one epoch move the policy too far", "lower train.learning_rate, or train.gradient_step_per_epoch"),
    ),
    (
        r"train/\w*grad_(norm|rms)",
        ("rises", "above"),
        ("the gradient grows: updates diverge, or a few samples dominate them", "lower train.learning_rate and train.max_grad_norm"),
    ),
    (
        r"train/\w*grad_(norm|rms)",
        ("falls", "below"),
        ("the gradient vanishes: little is learned", "see train/zero_variance_share, and raise train.learning_rate"),
    ),
)
"""(metrics, conditions, words)"""


def words(config: RunConfig, watch: WatchConfig) -> Words:
    """What the watch has found, in words."""
    reward = re.fullmatch(r"(?:train|eval)/(?:[^/]+/)?(?:reward|transformed)_(.+)_mean", watch.metric)
    if reward is not None and (message := _of_reward(config, watch, reward[1])) is not None:
        return message
    for pattern, conditions, message in _OTHERS:
        if watch.condition in conditions and re.fullmatch(pattern, watch.metric):
            return message
    return explained(watch.metric) or "the run's own metric", "look at curves.png and at the pictures"


def held_out(config: RunConfig, watch: WatchConfig) -> bool:
    """Whether the metric is of a reward that is evaluated and never trained on."""
    found = re.fullmatch(r"eval/(?:[^/]+/)?reward_(.+)_mean", watch.metric)
    return found is not None and found[1] not in {reward.name for reward in config.rewards if reward.weight != 0}


def _of_reward(config: RunConfig, watch: WatchConfig, name: str) -> Words | None:
    entries = config.rewards if watch.phase == "train" else config.evaluated_by
    model = next((REWARDS.canonical(reward.reward_model) for reward in entries if reward.name == name), "")
    conditions, message = _OF_REWARDS.get(model, ((), ("", "")))
    if watch.condition in conditions:
        return message
    if watch.condition not in ("falls", "below"):
        return None
    if held_out(config, watch):
        return "the policy loses what it is not trained on: it exploits the trained rewards", _EXPLOITS
    return "the policy gets worse at this reward", "lower train.learning_rate, or go back to an earlier checkpoint"
