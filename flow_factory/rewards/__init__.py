"""Rewards, one file each, their interface, and the scoring of groups; `judges` ask vision-language models.

Importing it loads neither torch nor any reward.
"""

from typing import TYPE_CHECKING, Any

from flow_factory.utils.registry import Registry, UnknownName

if TYPE_CHECKING:
    from flow_factory.rewards.base import BaseRewardModel, GroupwiseRewardModel, PointwiseRewardModel, RewardModelOutput, groupwise

__all__ = ["REWARDS", "BaseRewardModel", "GroupwiseRewardModel", "PointwiseRewardModel", "RewardModelOutput", "groupwise"]

REFUSED = {
    "imagebind": "its weights are CC-BY-NC-SA 4.0, not for commercial use; for sound there is clap",
    "hpsv3++": "its architecture is not in transformers; serve it with its own code and write remote, or HPSv3 here",
    "deqa": "transformers has no mPLUG-Owl2; serve it with its own code and write remote",
}
"""Public names that are not here, and why."""


GIVEN = "python:"
"""What the names of rewards begin with that were handed to `flow_factory.train`."""


class _Rewards(Registry):
    given: dict[str, Any] = {}
    """Functions and classes by their name here, until the program ends: no module has them by theirs."""

    def path(self, name: str) -> str:
        if name.startswith(GIVEN):
            return name
        if name.lower() in REFUSED:
            raise UnknownName(f"no reward {name!r}: {REFUSED[name.lower()]}")
        return super().path(name)

    def __getitem__(self, name: str) -> Any:
        if name.startswith(GIVEN) and name not in self.given:
            text = "was passed to flow_factory.train as a function; pass it again, or put it in a module and name its dotted path"
            text += " (for ff-eval in a YAML: --config)"
            raise UnknownName(f"the reward {name!r} {text}")
        return self.given[name] if name in self.given else super().__getitem__(name)


REWARDS = _Rewards(
    "reward",
    {
        "PickScore": "flow_factory.rewards.pick_score:PickScoreReward",
        "PickScore_Rank": "flow_factory.rewards.pick_score:PickScoreRank",
        "CLIP": "flow_factory.rewards.clip:CLIPReward",
        "HPSv2": "flow_factory.rewards.hps:HPSv2Reward",
        "HPSv3": "flow_factory.rewards.hpsv3:HPSv3Reward",
        "VideoAlign": "flow_factory.rewards.video_align:VideoAlignReward",
        "ImageReward": "flow_factory.rewards.image_reward:ImageReward",
        "GenEval": "flow_factory.rewards.gen_eval:GenEvalReward",
        "OCR": "flow_factory.rewards.ocr:OCRReward",
        "clap": "flow_factory.rewards.clap:CLAPReward",
        "aesthetic": "flow_factory.rewards.aesthetic:AestheticReward",
        "vlm_yes_no": "flow_factory.rewards.judges.rewards:YesNoJudge",
        "vlm_rubric": "flow_factory.rewards.judges.rewards:RubricJudge",
        "vlm_pairwise": "flow_factory.rewards.judges.rewards:PairwiseJudge",
        "vllm_evaluate": "flow_factory.rewards.judges.published:EvaluateJudge",
        "rational_rewards_t2i": "flow_factory.rewards.judges.published:RationalRewardsT2I",
        "rational_rewards_edit": "flow_factory.rewards.judges.published:RationalRewardsEdit",
        "UnifiedReward": "flow_factory.rewards.judges.published:UnifiedReward",
        "UnifiedReward_pairwise": "flow_factory.rewards.judges.published:UnifiedRewardPairwise",
        "GenEval2": "flow_factory.rewards.judges.published:GenEval2",
        "remote": "flow_factory.rewards.remote:RemotePointwiseRewardModel",
        "remote_group": "flow_factory.rewards.remote:RemoteGroupwiseRewardModel",
        "diversity": "flow_factory.rewards.diversity:DiversityReward",
        "saturation": "flow_factory.rewards.picture_statistics:Saturation",
        "high_frequency": "flow_factory.rewards.picture_statistics:HighFrequency",
        "jpeg_compressibility": "flow_factory.rewards.jpeg:JpegCompressibility",
        "jpeg_incompressibility": "flow_factory.rewards.jpeg:JpegIncompressibility",
        "shapes": "flow_factory.rewards.shapes:ShapesReward",
        "shape_colors": "flow_factory.rewards.shape_colors:ShapeColorsReward",
    },
    aliases={"VideoReward": "VideoAlign"},
)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from flow_factory.rewards import base

    return getattr(base, name)
