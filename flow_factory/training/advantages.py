"""Advantages and metrics from an epoch's scores, for each data set separately, with its own rewards and weights."""

import logging
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from flow_factory.config import GateConfig, TrainConfig
from flow_factory.core.advantage import aggregation, varies
from flow_factory.core.uncertainty import uncertainty
from flow_factory.rewards.constant_rewards import ConstantRewards
from flow_factory.rewards.scoring import RewardSet
from flow_factory.rewards.transform import transformed
from flow_factory.types import Metrics

logger = logging.getLogger(__name__)
COUNTS = ("missing_scores", "unscored_samples")
"""Metrics that are summed over data sets, not averaged."""


class DatasetAdvantages:
    """The advantages of one data set's groups. The statistics use no scores of other data sets.

    Args:
        rewards: the rewards of all data sets.
        dataset: the name of the data set; "" if there is only one.
    """

    def __init__(self, train: TrainConfig, rewards: RewardSet, dataset: str):
        self.rewards, self.global_std, self.constant = rewards.of(dataset), train.global_std, ConstantRewards()
        self.columns = [k for k, reward in enumerate(rewards.rewards) if reward.scores(dataset)]
        self.diversity = train.diversity_reward if isinstance(train, GateConfig) else None
        self.aggregate = aggregation(train.advantage_aggregation, self.rewards.names, self.diversity)
        self.has_spread: list[bool] = []
        """Whether each reward gave different scores within a group in the last call."""

    def __call__(self, scores: Tensor) -> tuple[Tensor, Metrics]:
        """Scores (G, n, R) of all rewards -> advantages (G, n), and metrics of this data set's rewards."""
        rewards, weights, used = self.rewards, torch.tensor(self.rewards.weights, dtype=torch.float64), self.used(scores)
        scores = scores[..., self.columns]
        advantage, metrics = self.aggregate(used, weights, self.global_std)
        for name, column in zip(rewards.names, scores.flatten(0, 1).T, strict=True):
            known = column[~column.isnan()]
            metrics |= {f"reward_{name}_mean": known.mean(), f"reward_{name}_std": known.std(correction=0)}
        for reward, column in zip(rewards.rewards, used.unbind(-1), strict=True):
            if reward.config.transform is not None:
                metrics[f"transformed_{reward.name}_mean"] = column.nanmean()
        self.has_spread = varies(used, used.isfinite()).any(0).flatten().tolist()
        return advantage, metrics | {"reward_mean": (scores.nanmean((0, 1)) * weights).sum()}

    def used(self, scores: Tensor) -> Tensor:
        """The transformed scores of this data set's rewards."""
        return transformed(scores[..., self.columns], [reward.config.transform for reward in self.rewards.rewards])

    def doubts(self, scores: Tensor) -> Tensor:
        """Scores (G, n, R) of all rewards -> (G, n): how much higher the trained rewards rank a sample than the watched ones."""
        used, weights = self.used(scores).flatten(0, 1), torch.tensor(self.rewards.weights, dtype=torch.float64)
        watched = [k for k, name in enumerate(self.rewards.names) if weights[k] == 0 and name != self.diversity]
        proxy = (used * weights)[:, weights != 0].sum(-1)
        return uncertainty(proxy, used[:, watched]).view(scores.shape[:2])

    def silent(self, groups: int) -> str | None:
        """A line about rewards that gave equal scores within every group of the last call; else None."""
        line = self.constant.look(self.rewards.names, self.rewards.weights, self.has_spread, groups)
        return f"data set {self.rewards.dataset}: {line}" if line and self.rewards.dataset else line


class Advantages:
    """The advantages of a run."""

    def __init__(self, train: TrainConfig, rewards: RewardSet, datasets: Sequence[str]):
        self.of = {dataset: DatasetAdvantages(train, rewards, dataset) for dataset in datasets}
        self.places: dict[str, list[int]] = {}
        """Data set -> indices of its groups in the last call."""

    def __call__(self, scores: Tensor, datasets: Sequence[str]) -> tuple[Tensor, Metrics]:
        """Scores (G, n, R) -> advantages (G, n), and metrics: with several data sets those of each one under its name, and some of all.

        Args:
            datasets: the data set of each group.
        """
        self.places = {name: [k for k, dataset in enumerate(datasets) if dataset == name] for name in dict.fromkeys(datasets)}
        parts = {name: self.of[name](scores[groups]) for name, groups in self.places.items()}
        advantage = torch.empty(scores.shape[:2])
        for name, groups in self.places.items():
            advantage[groups] = parts[name][0]
        if len(self.of) == 1:
            return advantage, parts[datasets[0]][1]
        found: Metrics = {f"{name}/{key}": value for name, (_, metrics) in parts.items() for key, value in metrics.items()}
        for key in ("reward_mean", "zero_variance_share"):
            found[key] = torch.stack([len(self.places[name]) * part[1][key].double() for name, part in parts.items()]).sum() / len(datasets)
        return advantage, found | {key: torch.stack([part[1][key] for part in parts.values()]).sum() for key in COUNTS}

    def doubts(self, scores: Tensor, datasets: Sequence[str]) -> Tensor:
        """(G, n), see `DatasetAdvantages.doubts`. Samples of different data sets are not compared."""
        found = torch.empty(scores.shape[:2], dtype=torch.float64)
        for name in dict.fromkeys(datasets):
            groups = [k for k, dataset in enumerate(datasets) if dataset == name]
            found[groups] = self.of[name].doubts(scores[groups])
        return found

    def silent(self) -> Iterator[str]:
        """Lines about rewards that gave equal scores within every group of the last call."""
        for name, groups in self.places.items():
            if line := self.of[name].silent(len(groups)):
                yield line
