"""The interface, by the name under which rewards written for other implementations import it."""

from flow_factory.rewards.base import BaseRewardModel, GroupwiseRewardModel, PointwiseRewardModel, RewardModelOutput, groupwise

__all__ = ["BaseRewardModel", "GroupwiseRewardModel", "PointwiseRewardModel", "RewardModelOutput", "groupwise"]
