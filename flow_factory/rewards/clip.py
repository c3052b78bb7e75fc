"""Text-image similarity by CLIP (arXiv 2103.00020); PickScore scores with the same helper."""

from math import floor
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoModel, AutoProcessor

from flow_factory.hparams import RewardArguments
from flow_factory.rewards.base import PointwiseRewardModel, RewardModelOutput
from flow_factory.rewards.media import scored
from flow_factory.rewards.pixels import cropped, normalised
from flow_factory.rewards.sources import FILES, model_of, processor_of, require_folder

TOKENS = 77
WEIGHTS = "openai/clip-vit-large-patch14"


class CLIPScorer:
    """Cosine similarity of prompts and pictures under one CLIP checkpoint.

    Args:
        config: its `model_name_or_path` and `processor_name_or_path` stand before the defaults; a model of one's own
            brings its own processor.
        weights, processor: default folders or hub names; the processor's is that of the weights where not given.

    Raises:
        UserError: the checkpoint or its processor does not load, or lacks some of the weights.
    """

    KEYS: ClassVar[tuple[str, ...]] = ("model_name_or_path", "processor_name_or_path")

    def __init__(self, config: RewardArguments, device: torch.device, weights: str, processor: str | None = None):
        self.require(config, weights, processor, now=True)
        model, processor = self.names(config, weights, processor)
        self.processor = processor_of(AutoProcessor, processor, config, "CLIP processor")
        self._hold(model_of(AutoModel, model, config, "CLIP model"), config, device)

    def _hold(self, clip: Any, config: RewardArguments, device: torch.device) -> None:
        self.scale = clip.logit_scale.detach().float().exp().item()  # before rounding: bfloat16 moves it by up to 0.4 %
        self.model = clip.to(device, config.dtype).requires_grad_(False)
        self.dtype, self.device, self.batch_size = config.dtype, device, config.batch_size

    @staticmethod
    def names(config: RewardArguments, weights: str, processor: str | None = None) -> tuple[str, str]:
        """Folders or hub names of the checkpoint and of its processor."""
        extra = config.extra_kwargs
        model = str(extra.get("model_name_or_path", weights))
        if processor is None or "model_name_or_path" in extra:
            processor = model
        return model, str(extra.get("processor_name_or_path", processor))

    @classmethod
    def require(cls, config: RewardArguments, weights: str, processor: str | None = None, now: bool = True) -> None:
        """See `BaseRewardModel.require_files`: names, and of weights that are on this machine the headers."""
        for key, name, file in zip(cls.KEYS, cls.names(config, weights, processor), FILES.values(), strict=True):
            require_folder(config, key, name, file, now)

    @torch.no_grad()
    def texts(self, texts: list[str]) -> Tensor:
        """(n, d) float32 unit vectors of n texts, each cut at, and padded to, 77 tokens: one does not depend on its neighbours."""
        inputs = self.processor.tokenizer(texts, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt")
        output = self.model.get_text_features(inputs["input_ids"].to(self.device), inputs["attention_mask"].to(self.device))
        return normalize(output.pooler_output.float(), dim=-1)

    @torch.no_grad()
    def pictures(self, images: list[Image.Image]) -> Tensor:
        """(n, d) float32 unit vectors of n pictures."""
        pixels = self.processor.image_processor([i.convert("RGB") for i in images], return_tensors="pt")["pixel_values"]
        return normalize(self.model.get_image_features(pixels.to(self.device, self.dtype)).pooler_output.float(), dim=-1)

    def features(self, pixels: Tensor) -> Tensor:
        """(n, d) float32 unit vectors of pixels (n, 3, h, w) in [0, 1], with gradient."""
        processor = self.processor.image_processor
        seen = normalised(self.framed(pixels.to(self.device, torch.float32)), processor.image_mean, processor.image_std)
        return normalize(self.model.get_image_features(seen.to(self.dtype)).pooler_output.float(), dim=-1)

    def framed(self, pixels: Tensor) -> Tensor:
        """The square that the model sees."""
        processor = self.processor.image_processor
        return cropped(pixels, processor.crop_size["height"], processor.size["shortest_edge"], floor)

    def alike(self, prompts: list[str], pixels: Tensor) -> Tensor:
        """(n,) `cosine` of pixels, with gradient."""
        return (self.features(pixels) * self.texts(prompts)).sum(-1)

    def cosine(self, prompts: list[str], images: list[Image.Image]) -> Tensor:
        """(n,) float32 cosine of prompt k and image k."""
        index = {text: k for k, text in enumerate(dict.fromkeys(prompts))}
        return (self.pictures(images) * self.texts(list(index))[[index[p] for p in prompts]]).sum(-1)

    def cosines(self, prompts: list[str], image: list | None, video: list | None) -> Tensor:
        """(n,) cosines of n images or videos, `config.batch_size` pictures at a time; a video's is the mean over its frames."""
        return scored(self.cosine, prompts, image, video, self.batch_size)


class CLIPReward(PointwiseRewardModel):
    """Raw cosine of prompt and picture, in [-1, 1] (real pairs about 0.15 to 0.35): neither logits nor percent.

    A video's is the mean over its frames. float32 unless the entry says another dtype.
    """

    required_fields = ("prompt", "image", "video")
    extra_keys = ("model_name_or_path", "processor_name_or_path")
    loads_weights = True
    changes_inputs = False
    no_gradient = None

    @classmethod
    def require_files(cls, config: RewardArguments, now: bool) -> None:
        CLIPScorer.require(config, WEIGHTS, now=now)

    def __init__(self, config: RewardArguments, accelerator: Accelerator):
        super().__init__(config, accelerator)
        self.clip = self.scorer(config)

    def scorer(self, config: RewardArguments) -> CLIPScorer:
        return CLIPScorer(config, self.device, WEIGHTS)

    def __call__(self, prompt: list[str], image: list | None = None, video: list | None = None) -> RewardModelOutput:
        return RewardModelOutput(self.clip.cosines(prompt, image, video))

    def differentiable(self, prompt: list[str], pixels: Tensor) -> Tensor:
        return self.clip.alike(prompt, pixels)
