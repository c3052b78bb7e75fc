"""Text-image similarity by CLIP (arXiv 2103.00020); PickScore scores with the same helper."""

from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor
from transformers import AutoModel, AutoProcessor

from flow_factory.errors import UserError
from flow_factory.hparams import RewardArguments
from flow_factory.hub import cached, require_source, unreachable
from flow_factory.models.files import tensors_of
from flow_factory.rewards.base import PointwiseRewardModel, RewardModelOutput
from flow_factory.rewards.media import fold, unfold

TOKENS = 77
WEIGHTS = "openai/clip-vit-large-patch14"
FILES = ("config.json", "tokenizer_config.json")
"""What a checkpoint, and a processor's folder, cannot be without."""


def _load(auto: Any, path: str, reward: str, **options: Any) -> Any:
    """`auto.from_pretrained(path)` of a folder or a hub name.

    Raises:
        UserError: it does not load; one sentence that names the reward and the path.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir() and unreachable() is not None:
        options["local_files_only"] = True  # or the hub is asked again and again, for minutes
    try:
        return auto.from_pretrained(folder if folder.is_dir() else path, **options)
    except (OSError, ValueError) as error:
        reason = str(error).split("\n")[0]
        part = auto.__name__.removeprefix("Auto").lower()
        raise UserError(f"reward {reward!r} cannot load its CLIP {part} from {path!r}: {reason}") from error


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
        self.processor = _load(AutoProcessor, processor, config.name)
        clip, loaded = _load(AutoModel, model, config.name, output_loading_info=True)
        if loaded["missing_keys"]:
            raise UserError(
                f"reward {config.name!r}: the CLIP checkpoint {model!r} lacks weights, e.g. {sorted(loaded['missing_keys'])[0]}"
            )
        self.scale = clip.logit_scale.detach().float().exp().item()  # before rounding: bfloat16 moves it by up to 0.4 %
        self.model = clip.eval().requires_grad_(False).to(device, config.dtype)
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
        for key, name, file in zip(cls.KEYS, cls.names(config, weights, processor), FILES, strict=True):
            said, path = f"reward {config.name!r}: {key}", Path(name).expanduser()
            if not path.is_dir():
                require_source(name, said, file, now=now)
            folder = path if path.is_dir() else cached(name, file)
            for weight in sorted(folder.glob("model*.safetensors")) if folder is not None and key == cls.KEYS[0] else ():
                tensors_of(weight, said)

    @torch.no_grad()
    def cosine(self, prompts: list[str], images: list[Image.Image]) -> Tensor:
        """(n,) float32 cosine of prompt k and image k; texts are cut at 77 tokens.

        Every text is padded to 77, so that a score does not depend on its neighbours.
        """
        index = {text: k for k, text in enumerate(dict.fromkeys(prompts))}
        texts = self.processor.tokenizer(list(index), padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt")
        pixels = self.processor.image_processor([i.convert("RGB") for i in images], return_tensors="pt")["pixel_values"]
        output = self.model(
            input_ids=texts["input_ids"].to(self.device),
            attention_mask=texts["attention_mask"].to(self.device),
            pixel_values=pixels.to(self.device, self.dtype),
        )
        return torch.cosine_similarity(output.image_embeds.float(), output.text_embeds.float()[[index[p] for p in prompts]], dim=-1)

    def cosines(self, prompts: list[str], image: list | None, video: list | None) -> Tensor:
        """(n,) cosines of n images or videos, `config.batch_size` pictures at a time; a video's is the mean over its frames."""
        pictures, counts = unfold(image, video)
        texts = [p for p, count in zip(prompts, counts, strict=True) for _ in range(count)]
        batches = [slice(k, k + self.batch_size) for k in range(0, len(pictures), self.batch_size)]
        return fold(torch.cat([self.cosine(texts[b], pictures[b]) for b in batches]), counts)


class CLIPReward(PointwiseRewardModel):
    """Raw cosine of prompt and picture, in [-1, 1] (real pairs about 0.15 to 0.35): neither logits nor percent.

    A video's is the mean over its frames. float32 unless the entry says another dtype.
    """

    required_fields = ("prompt", "image", "video")
    extra_keys = CLIPScorer.KEYS
    loads_weights = True
    changes_inputs = False

    @classmethod
    def require_files(cls, config: RewardArguments, now: bool) -> None:
        CLIPScorer.require(config, WEIGHTS, now=now)

    def __init__(self, config: RewardArguments, accelerator: Accelerator):
        super().__init__(config, accelerator)
        self.clip = CLIPScorer(config, self.device, WEIGHTS)

    def __call__(self, prompt: list[str], image: list | None = None, video: list | None = None) -> RewardModelOutput:
        return RewardModelOutput(self.clip.cosines(prompt, image, video))
