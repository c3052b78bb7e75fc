"""Rewards: (prompts, pictures) -> scores. Importing this loads neither torch nor any reward."""

from typing import TYPE_CHECKING, Any

from flow_factory.registry import Registry

if TYPE_CHECKING:
    from flow_factory.rewards.base import BaseRewardModel, GroupwiseRewardModel, PointwiseRewardModel, RewardModelOutput

__all__ = ["REWARDS", "BaseRewardModel", "GroupwiseRewardModel", "PointwiseRewardModel", "RewardModelOutput"]

REWARDS = Registry(
    "reward",
    {
        "PickScore": "flow_factory.rewards.pick_score:PickScoreReward",
        "PickScore_Rank": "flow_factory.rewards.pick_score:PickScoreRank",
        "CLIP": "flow_factory.rewards.clip:CLIPReward",
        "HPSv2": "flow_factory.rewards.hps:HPSv2Reward",
        "ImageReward": "flow_factory.rewards.image_reward:ImageReward",
        "clap": "flow_factory.rewards.clap:CLAPReward",
        "aesthetic": "flow_factory.rewards.aesthetic:AestheticReward",
        "jpeg_compressibility": "flow_factory.rewards.jpeg:JpegCompressibility",
        "jpeg_incompressibility": "flow_factory.rewards.jpeg:JpegIncompressibility",
        "shapes": "flow_factory.rewards.shapes:ShapesReward",
    },
)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from flow_factory.rewards import base

    return getattr(base, name)
