"""The base of rewards that ask a vision-language model as judge.

The judge runs where the entry says: `model_name_or_path`, a checkpoint on this machine; otherwise `api_base_url` and `vlm_model`, a
server. `template` names what it is asked: a file that comes along (`judges/templates/`) or a YAML file of one's own.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from accelerate import Accelerator
from PIL import Image

from flow_factory.hparams import RewardArguments
from flow_factory.rewards.base import BaseRewardModel, PointwiseRewardModel, RewardModelOutput
from flow_factory.rewards.failures import Verdict, require_policy, reward_output
from flow_factory.rewards.judges.local import LocalVLM
from flow_factory.rewards.judges.question import Question, Template, load_template
from flow_factory.rewards.judges.served import ServedVLM
from flow_factory.rewards.needs import Needs
from flow_factory.types import Row
from flow_factory.utils.errors import UserError

ADDRESS = "http://localhost:8000/v1"
"""vLLM's own."""
OWN = ("aspects", "by", "canonicalize", "max_cache_size", "mean", "opponents")
"""Keys that only some kinds of judges take; the YAML is compared with `extra_keys`, which must stand in one place as a literal."""


class Judge(BaseRewardModel):
    """What all have: the judge, its template, and what becomes of an answer that is none (`on_failure`: mask or stop)."""

    required_fields: Sequence[str] | str | None = ("prompt", "image", "video")
    extra_keys = (
        "model_name_or_path", "api_base_url", "api_key", "vlm_model", "max_concurrent", "max_retries", "timeout", "max_tokens",
        "temperature", "top_logprobs", "json_answer", "template", "frames", "on_failure",
        "aspects", "by", "canonicalize", "max_cache_size", "mean", "opponents",
    )  # fmt: skip
    own: ClassVar[tuple[str, ...]] = ()
    """The keys of `OWN` that the class takes."""
    shown: ClassVar[tuple[str, ...]] = ("image",)
    """The samples' placeholders that its templates must have."""
    loads_weights = True
    changes_inputs = False
    no_gradient = "its score is an answer in words"
    template_name: ClassVar[str]
    vlm_model: ClassVar[str] = "Qwen/Qwen3-VL-8B-Instruct"
    tokens: ClassVar[int] = 1024

    @classmethod
    def require_files(cls, config: RewardArguments, now: bool) -> None:
        cls.template_of(config)
        if cls.is_local(config):
            LocalVLM.require(config, cls.vlm_model, now)
            return
        served = ServedVLM(config, ADDRESS, cls.vlm_model, cls.tokens)
        if now:
            served.require()

    @classmethod
    def row_check(cls, config: RewardArguments) -> Callable[[Row], None]:
        template = cls.template_of(config)
        conditions = ("condition_images",) if "condition_image" in template.places else ()
        return Needs(config.name, (*conditions, *template.columns), (), (), True).require_columns

    @staticmethod
    def is_local(config: RewardArguments) -> bool:
        """Whether the judge runs on this machine.

        Raises:
            UserError: the entry says both, or a key of the other.
        """
        local = "model_name_or_path" in config.extra_kwargs
        for key in set(ServedVLM.KEYS) - set(LocalVLM.KEYS) if local else ():
            if key in config.extra_kwargs:
                message = f"reward {config.name!r}: {key} is for a judge on a server, and model_name_or_path for a local one; keep one"
                raise UserError(f"{message}; write one of them")
        return local

    @classmethod
    def template_of(cls, config: RewardArguments) -> Template:
        """The entry's template.

        Raises:
            UserError: it is damaged, or a key of the entry's own is wrong.
        """
        for key in sorted((set(OWN) - set(cls.own)) & config.extra_kwargs.keys()):
            raise UserError(
                f"reward {config.name!r} has no key {key!r}; {config.reward_model} takes {', '.join(cls.own) or 'none of its own'}"
            )
        require_policy(config)
        frames = config.extra_kwargs.get("frames", 4)
        if isinstance(frames, bool) or not isinstance(frames, int) or frames < 1:
            raise UserError(f"reward {config.name!r}: frames: wants a number of at least 1, got {frames!r}")
        template = load_template(config.name, str(config.extra_kwargs.get("template", cls.template_name)))
        if template.samples != cls.shown:
            wanted = " and ".join(f"{{{place}}}" for place in cls.shown)
            found = ", ".join(f"{{{place}}}" for place in template.samples) or "none"
            raise UserError(
                f"reward {config.name!r}: template: {template.name}: {config.reward_model} wants {wanted} in its user text, got {found}"
            )
        return template

    def __init__(self, config: RewardArguments, accelerator: Accelerator):
        super().__init__(config, accelerator)
        self.template = self.template_of(config)
        self.frames = config.extra_kwargs.get("frames", 4)
        self.vlm: Any = None
        if self.is_local(config):
            self.vlm = LocalVLM(config, self.device, self.vlm_model, self.tokens)
        else:
            self.vlm = ServedVLM(config, ADDRESS, self.vlm_model, self.tokens)

    def pictures(self, image: Sequence[Image.Image] | None, video: Sequence[list[Image.Image]] | None) -> list[list[Image.Image]]:
        """The images that the judge sees of each sample: the picture, or `frames` evenly spaced frames from the first to the last."""
        if image is not None:
            return [[one] for one in image]
        seen = [np.linspace(0, len(v) - 1, min(self.frames, len(v))).round().astype(int) for v in video or []]
        return [[frames[k] for k in picks] for frames, picks in zip(video or [], seen, strict=True)]

    def __call__(
        self,
        prompt: list[str],
        image: list[Image.Image] | None = None,
        video: list[list[Image.Image]] | None = None,
        condition_images: list[list[Image.Image]] | None = None,
        **columns: Any,
    ) -> RewardModelOutput:
        rows = self.rows(len(prompt), prompt=prompt, **columns)
        return self.judged(self.pictures(image, video), condition_images or [[]] * len(prompt), rows)

    def judged(
        self, seen: list[list[Image.Image]], conditions: Sequence[list[Image.Image]], rows: Sequence[Mapping[str, Any]]
    ) -> RewardModelOutput:
        """The scores of samples, from their images, condition images, prompts and columns."""
        raise NotImplementedError

    @staticmethod
    def rows(n: int, **columns: Any) -> list[dict[str, Any]]:
        """The prompt and columns of each sample."""
        return [{name: values[k] for name, values in columns.items() if values is not None} for k in range(n)]


class PointwiseJudge(Judge, PointwiseRewardModel):
    def verdicts(self, questions: Sequence[Question], rows: Sequence[Mapping[str, Any]]) -> list[Verdict]:
        """For each question a score, or the reason why there is none. `rows` are the samples' prompts and columns."""
        raise NotImplementedError

    def judged(
        self, seen: list[list[Image.Image]], conditions: Sequence[list[Image.Image]], rows: Sequence[Mapping[str, Any]]
    ) -> RewardModelOutput:
        shown = [{"image": p, "condition_image": c} for p, c in zip(seen, conditions, strict=True)]
        return reward_output(self.config, self.verdicts([self.template.question(s, row) for s, row in zip(shown, rows, strict=True)], rows))
