"""Likeness of sound and prompt: LAION's CLAP (arXiv 2211.06687), Apache-2.0, weights `laion/larger_clap_general`."""

from itertools import pairwise
from math import gcd

import numpy as np
import torch
from accelerate import Accelerator
from scipy.signal import resample_poly
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoFeatureExtractor, AutoTokenizer, ClapModel

from flow_factory.hparams import RewardArguments
from flow_factory.rewards.base import PointwiseRewardModel, RewardModelOutput
from flow_factory.rewards.media import fold
from flow_factory.rewards.sources import FILES, model_of, named, processor_of, require_folder

KEY = "model_name_or_path"
WEIGHTS = "laion/larger_clap_general"
TOKENS = 77


def mono(audio: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """(samples,) float32 mean over channels of (channels, samples), at `wanted` Hz."""
    wave = np.asarray(audio, np.float32).mean(0)
    common = gcd(rate, wanted)
    return wave if rate == wanted or not wave.size else resample_poly(wave, wanted // common, rate // common).astype(np.float32)


class CLAPReward(PointwiseRewardModel):
    """Cosine of prompt and sound, in [-1, 1] (real pairs about 0.2 to 0.6), of the mean over channels at CLAP's rate.

    Sound longer than CLAP's 10 seconds is the mean of its stretches of equal length: transformers' own extractor would take one of
    them by chance. Shorter sound is repeated, as published. Sound without a sample has no score.
    """

    required_fields = ("prompt", "audio")
    extra_keys = ("model_name_or_path",)
    loads_weights = True
    changes_inputs = False
    no_gradient = "it scores sound, and decoding gives only pictures"

    @classmethod
    def require_files(cls, config: RewardArguments, now: bool) -> None:
        require_folder(config, KEY, named(config, KEY, WEIGHTS), FILES["model"], now)

    def __init__(self, config: RewardArguments, accelerator: Accelerator):
        super().__init__(config, accelerator)
        name = named(config, KEY, WEIGHTS)
        self.require_files(config, now=True)
        self.extractor = processor_of(AutoFeatureExtractor, name, config, "CLAP feature extractor")
        self.tokenizer = processor_of(AutoTokenizer, name, config, "CLAP tokenizer")
        self.model = model_of(ClapModel, name, config, "CLAP model").to(self.device, config.dtype)

    def _stretches(self, wave: np.ndarray) -> list[np.ndarray]:
        most = self.extractor.nb_max_samples
        edges = np.linspace(0, wave.size, max(1, -(-wave.size // most)) + 1).round().astype(int)
        return [wave[a:b] for a, b in pairwise(edges)] if wave.size else []

    def _sounds(self, waves: list[np.ndarray]) -> Tensor:
        """(n, d) float32 unit vectors; one does not depend on its neighbours."""
        features = self.extractor(waves, sampling_rate=self.extractor.sampling_rate, return_tensors="pt")["input_features"]
        whole = torch.zeros(len(waves), 1, dtype=torch.bool, device=self.device)  # the extractor calls one of them longer by chance
        output = self.model.get_audio_features(features.to(self.device, self.config.dtype), is_longer=whole)
        return normalize(output.pooler_output.float(), dim=-1)

    def _texts(self, texts: list[str]) -> Tensor:
        words = self.tokenizer(texts, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt").to(self.device)
        return normalize(self.model.get_text_features(words["input_ids"], words["attention_mask"]).pooler_output.float(), dim=-1)

    @torch.no_grad()
    def __call__(self, prompt: list[str], audio: list[np.ndarray], audio_sample_rate: list[int]) -> RewardModelOutput:
        rate, size = self.extractor.sampling_rate, self.config.batch_size
        parts = [self._stretches(mono(a, r, rate)) for a, r in zip(audio, audio_sample_rate, strict=True)]
        waves, counts = [wave for stretches in parts for wave in stretches], [len(stretches) for stretches in parts]
        if not waves:
            return RewardModelOutput([None] * len(prompt), {"error": "sound without a sample"})
        vectors = torch.cat([self._sounds(waves[k : k + size]) for k in range(0, len(waves), size)])
        texts = torch.cat([text.expand(count, -1) for text, count in zip(self._texts(prompt).split(1), counts, strict=True)])
        return RewardModelOutput(fold((vectors * texts).sum(-1), counts), {"error": "" if all(counts) else "sound without a sample"})
