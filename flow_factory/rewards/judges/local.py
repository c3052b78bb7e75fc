"""A judge on this machine: any checkpoint of transformers that reads pictures and answers in text."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import transformers
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.utils import is_torchvision_available

from flow_factory.hparams import RewardArguments
from flow_factory.rewards.failures import Failed
from flow_factory.rewards.judges.question import Question
from flow_factory.rewards.sources import FILES, model_of, named, processor_of, require_folder
from flow_factory.utils.errors import UserError
from flow_factory.utils.processors import without_video

QWEN = {"qwen2_vl": "Qwen2VLProcessor", "qwen2_5_vl": "Qwen2_5_VLProcessor"}
"""Processors whose part for videos, which no judge here uses, wants torchvision."""


def vision_processor(name: str, config: RewardArguments) -> Any:
    """The processor of texts and pictures of a checkpoint."""
    auto: Any = AutoProcessor
    if not is_torchvision_available():
        kind = processor_of(AutoConfig, name, config, "VLM config").model_type
        auto = without_video(getattr(transformers, QWEN[kind])) if kind in QWEN else auto
    try:
        return processor_of(auto, name, config, "VLM processor")
    except ImportError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"reward {config.name!r} cannot load its VLM processor from {name!r}: {reason}") from error


class LocalVLM:
    """Answers one question at a time, so an answer does not depend on other questions or on padding."""

    KEYS: ClassVar[tuple[str, ...]] = ("model_name_or_path", "max_tokens")

    @classmethod
    def require(cls, config: RewardArguments, default: str, now: bool) -> None:
        """See `BaseRewardModel.require_files`."""
        require_folder(config, cls.KEYS[0], named(config, cls.KEYS[0], default), FILES["model"], now)

    def __init__(self, config: RewardArguments, device: torch.device, default: str, tokens: int):
        self.require(config, default, now=True)
        name = named(config, self.KEYS[0], default)
        self.processor = vision_processor(name, config)
        self.model = model_of(AutoModelForImageTextToText, name, config, "VLM", dtype=config.dtype).to(device)
        self.device, self.dtype = device, config.dtype
        self.tokens = int(config.extra_kwargs.get("max_tokens", tokens))

    def inputs(self, question: Question) -> Any:
        """What the model takes: the chat in the checkpoint's own template, with the pictures."""
        parts = [{"type": "image", "image": p} if isinstance(p, Image.Image) else {"type": "text", "text": p} for p in question.parts]
        chat: list[dict[str, Any]] = [{"role": "user", "content": parts}]
        if question.system:
            chat.insert(0, {"role": "system", "content": [{"type": "text", "text": question.system}]})
        batch = self.processor.apply_chat_template(
            chat, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt", sanitize_control_tokens=True
        )
        return batch.to(self.device, self.dtype)

    @torch.no_grad()
    def first(self, questions: Sequence[tuple[Question, Sequence[Sequence[str]]]]) -> list[list[float] | Failed]:
        """For each question, and each of its groups of words: the probability that the answer's first token begins one of them."""
        found: list[list[float] | Failed] = []
        for question, groups in questions:
            likely = self.model(**self.inputs(question)).logits[0, -1].float().softmax(-1)
            tokens = [{self.processor.tokenizer.encode(word, add_special_tokens=False)[0] for word in group} for group in groups]
            found.append([likely[sorted(ids)].sum().item() for ids in tokens])
        return found

    @torch.no_grad()
    def answers(self, questions: Sequence[Question], names: Sequence[str] = ()) -> list[str | Failed]:
        """The likeliest token each time, up to `max_tokens`; an answer that is longer was not read to its end, and is none."""
        found: list[str | Failed] = []
        for question in questions:
            inputs = self.inputs(question)
            reward_output = self.model.generate(**inputs, max_new_tokens=self.tokens, do_sample=False)[0, inputs["input_ids"].shape[1] :]
            ends = self.model.generation_config.eos_token_id
            ended = int(reward_output[-1]) in (ends if isinstance(ends, list) else [ends])
            text = self.processor.tokenizer.decode(reward_output, skip_special_tokens=True)
            found.append(text if ended else Failed(f"the judge's answer is longer than max_tokens ({self.tokens})"))
        return found
