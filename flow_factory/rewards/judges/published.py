"""Published judges: RationalRewards, UnifiedReward, GenEval 2, and Flow-Factory's `vllm_evaluate`."""

import math
from collections.abc import Sequence
from typing import Any

from PIL import Image

from flow_factory.hparams import RewardArguments
from flow_factory.rewards.base import RewardModelOutput
from flow_factory.rewards.failures import Failed, Verdict, reward_output
from flow_factory.rewards.judges.base import PointwiseJudge
from flow_factory.rewards.judges.question import Template
from flow_factory.rewards.judges.rewards import PairwiseJudge, RubricJudge, YesNoJudge
from flow_factory.utils.errors import UserError


class EvaluateJudge(YesNoJudge):
    """Whether the picture is of high quality: `YesNoJudge` under its public name. `canonicalize` and `max_cache_size` have no effect."""

    own = ("canonicalize", "max_cache_size")
    template_name = "quality"
    vlm_model = "Qwen3-VL"


class RationalRewardsT2I(RubricJudge):
    """RationalRewards of a picture: text faithfulness, physical quality, text rendering, each 1 to 4; (mean - 1) / 3.

    Weights `TIGER-Lab/RationalRewards-8B-T2I` (Apache-2.0). The template asks for the published aspects and form in words of its own.
    """

    template_name = "rational_rewards_t2i"
    vlm_model = "RationalRewards-8B-T2I"
    tokens = 2048


class RationalRewardsEdit(RubricJudge):
    """RationalRewards of an edit: as `RationalRewardsT2I`, and whether all else of the source image is kept.

    Weights `TIGER-Lab/RationalRewards-8B-Edit` (Apache-2.0).
    """

    required_fields = ("prompt", "image", "condition_images")
    template_name = "rational_rewards_edit"
    vlm_model = "RationalRewards-8B-Edit"
    tokens = 2048


class UnifiedReward(RubricJudge):
    """UnifiedReward 2.0 (arXiv 2503.05236), pointwise: the final score of 1 to 5, (x - 1) / 4.

    Weights `CodeGoat24/UnifiedReward-2.0-qwen3vl-8b` (MIT).
    """

    template_name, vlm_model = "unified_reward", "CodeGoat24/UnifiedReward-2.0-qwen3vl-8b"


class UnifiedRewardPairwise(PairwiseJudge):
    """UnifiedReward in pairs (arXiv 2503.05236; Pref-GRPO, arXiv 2508.20751): the share of comparisons in its group that a picture wins.

    The judge explains itself and ends with "Image 1 is better" or "Image 2 is better", as the first versions of the model do. The template
    asks for that form in words of its own.
    """

    template_name, vlm_model = "unified_reward_pairwise", "CodeGoat24/UnifiedReward-qwen-7b"
    by = "answer"
    tokens = 2048


class GenEval2(PointwiseJudge):
    """Soft-TIFA of GenEval 2 (arXiv 2512.16853; code and data by Meta): the judge's probability of the right answer to each question.

    Column `vqa_list`: [[question, answer], ...]. The mean over questions, or with `mean: geometric` their geometric mean; 0 to 1. An
    answer's probability is of its first token, not divided by that of the others, as published.
    """

    required_fields = ("prompt", "image", "video", "vqa_list")
    own = ("mean",)
    template_name = "one_word"

    @classmethod
    def row_check(cls, config: RewardArguments) -> None:  # type: ignore[override]
        """Its template's place for the question is not a column."""

    @classmethod
    def template_of(cls, config: RewardArguments) -> Template:
        if config.extra_kwargs.get("mean", "arithmetic") not in ("arithmetic", "geometric"):
            raise UserError(f"reward {config.name!r}: mean: wants arithmetic or geometric, got {config.extra_kwargs['mean']!r}")
        return super().template_of(config)

    def __call__(  # type: ignore[override]
        self, prompt: list[str], vqa_list: list[Any], image: list[Image.Image] | None = None, video: list[list[Image.Image]] | None = None
    ) -> RewardModelOutput:
        questions, counts = [], []
        for seen, pairs in zip(self.pictures(image, video), vqa_list, strict=True):
            counts.append(len(pairs))
            questions += [(self.template.question({"image": seen}, {"question": q}), [answers_of(q, a)]) for q, a in pairs]
        likely = iter(self.vlm.first(questions))
        return reward_output(self.config, [self._mean([next(likely) for _ in range(count)]) for count in counts])

    def _mean(self, likely: Sequence[list[float] | Failed]) -> Verdict:
        failed = [one for one in likely if isinstance(one, Failed)]
        if failed or not likely:
            return failed[0] if failed else Failed("vqa_list is empty")
        atoms = [one[0] for one in likely if not isinstance(one, Failed)]
        if self.config.extra_kwargs.get("mean", "arithmetic") == "arithmetic":
            return sum(atoms) / len(atoms)
        return math.prod(atoms) ** (1 / len(atoms))


NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def answers_of(question: str, answer: str) -> tuple[str, ...]:
    """The answers that GenEval 2 accepts: a count as word or number, else yes."""
    if not question.startswith("How many"):
        return tuple(space + word for word in ("Yes", "yes") for space in ("", " "))
    number = str(NUMBERS.index(answer)) if answer in NUMBERS else answer
    return tuple(dict.fromkeys(space + form for form in (answer, answer.capitalize(), number) for space in ("", " ")))
