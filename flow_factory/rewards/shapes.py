"""The quick start's reward: are the shapes there that the caption asks for (`shapes_detector`)?"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from flow_factory.rewards.base import PointwiseRewardModel, RewardModelOutput
from flow_factory.rewards.shapes_detector import detect, grade


class ShapesReward(PointwiseRewardModel):
    """Partial credit up to 0.7, and 1 exactly for a picture of just the asked objects in the asked relation (`shapes_detector.grade`).

    Columns: `objects`, a list of {color, shape, count}; `relation`, one of `shapes_detector.RELATIONS`, or none. With the key
    `strict: true` the score is 1 or 0. `extra_info` holds the score that was not asked for, under its name "soft" or "strict".
    """

    required_fields = ("prompt", "image", "objects")
    extra_keys = ("strict",)
    changes_inputs = False
    no_gradient = "it is a rule of whole numbers"

    def __call__(
        self,
        prompt: list[str],
        image: list[Image.Image],
        objects: Sequence[Sequence[Mapping[str, Any]]],
        relation: Sequence[str | None] | None = None,
    ) -> RewardModelOutput:
        found = detect(np.stack([np.asarray(i.convert("RGB")) for i in image]))
        relations = [None] * len(image) if relation is None else relation
        grades = [grade(*one) for one in zip(found, objects, relations, strict=True)]
        soft, strict = [score for score, _ in grades], [float(exact) for _, exact in grades]
        if self.config.extra_kwargs.get("strict", False):
            return RewardModelOutput(strict, {"soft": soft})
        return RewardModelOutput(soft, {"strict": strict})
