"""Rewards that load a model, each against an independent computation of it on a tiny random checkpoint."""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoProcessor, AutoTokenizer, ClapFeatureExtractor, ClapModel, CLIPModel

from flow_factory.hparams import RewardArguments
from flow_factory.rewards.loading import require_files
from flow_factory.types import Clip, Row
from flow_factory.utils.errors import UserError
from tests.rewards.reward_set import pictures, rewards

# -- aesthetic, HPSv2 -------------------------------------------------------------------------------------------------------------------


def test_aesthetic_is_the_published_head_over_unit_vectors(keys: Any) -> None:
    images, given = pictures(3), keys("aesthetic")
    clip, layers = CLIPModel.from_pretrained(given["model_name_or_path"]).eval(), torch.load(given["head_name_or_path"])
    pixels = AutoProcessor.from_pretrained(given["model_name_or_path"]).image_processor(images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        vector = clip.visual_projection(clip.vision_model(pixels).pooler_output)
    x = (vector / vector.norm(dim=-1, keepdim=True)).double()
    for k in (0, 2, 4, 6, 7):
        x = x @ layers[f"layers.{k}.weight"].double().T + layers[f"layers.{k}.bias"].double()
    assert x.std() > 0.01
    found = rewards("aesthetic", **given).score([Row(0, "a")], [images])[0][:, 0]
    torch.testing.assert_close(found, x[:, 0].float(), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("prompt", "size", "recorded"), [
    ("a red circle", (40, 40), [-0.1930537074804306, -0.1923506110906601]),
    ("a red circle", (48, 40), [-0.19925294816493988, -0.17181989550590515]),
    ("two dogs on a hill", (40, 40), [-0.13236841559410095, -0.13345152139663696]),
    ("two dogs on a hill", (48, 40), [-0.14122039079666138, -0.11635255813598633]),
])  # fmt: skip
def test_hps_matches_open_clip(keys: Any, prompt: str, size: tuple[int, int], recorded: list[float]) -> None:
    """Recorded of open_clip_torch 3.3.0 (which wants torchvision) on the same weights; the wider pictures stand between black bars."""
    found = rewards("HPSv2", **keys("HPSv2")).score([Row(0, prompt)], [[i.resize(size, 0) for i in pictures(2)]])[0][:, 0]
    torch.testing.assert_close(found, torch.tensor(recorded), atol=2e-5, rtol=0)


# -- ImageReward ------------------------------------------------------------------------------------------------------------------------


class ByHand:
    """ImageReward as its paper has it, from the published file alone, in float64 and with no class of transformers."""

    def __init__(self, file: str):
        self.t = {name: tensor.double() for name, tensor in torch.load(file).items()}

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.t[f"{name}.weight"].T + self.t[f"{name}.bias"]

    def norm(self, x: Tensor, name: str, eps: float) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.t[f"{name}.weight"], self.t[f"{name}.bias"], eps)

    @staticmethod
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(tokens, width), by heads of 64."""
        parts = [a.softmax(-1) @ c for a, c in (
            (q[:, h : h + 64] @ k[:, h : h + 64].T / 8, v[:, h : h + 64]) for h in range(0, q.shape[1], 64)
        )]  # fmt: skip
        return torch.cat(parts, -1)

    def see(self, pixels: Tensor) -> Tensor:
        at = "blip.visual_encoder"
        patches = F.conv2d(pixels[None].double(), self.t[f"{at}.patch_embed.proj.weight"], self.t[f"{at}.patch_embed.proj.bias"], 16)
        x = torch.cat([self.t[f"{at}.cls_token"][0], patches[0].flatten(1).T]) + self.t[f"{at}.pos_embed"][0]
        for k in range(2):
            block = f"{at}.blocks.{k}"
            attended = self.attend(*self.linear(self.norm(x, f"{block}.norm1", 1e-6), f"{block}.attn.qkv").chunk(3, -1))
            x = x + self.linear(attended, f"{block}.attn.proj")
            x = x + self.linear(F.gelu(self.linear(self.norm(x, f"{block}.norm2", 1e-6), f"{block}.mlp.fc1")), f"{block}.mlp.fc2")
        return self.norm(x, f"{at}.norm", 1e-6)

    def read(self, ids: list[int], seen: Tensor) -> Tensor:
        at = "blip.text_encoder"
        x = self.t[f"{at}.embeddings.word_embeddings.weight"][ids] + self.t[f"{at}.embeddings.position_embeddings.weight"][: len(ids)]
        x = self.norm(x, f"{at}.embeddings.LayerNorm", 1e-12)
        for k in range(2):
            layer = f"{at}.encoder.layer.{k}"
            for kind, other in (("attention", None), ("crossattention", seen)):
                q = self.linear(x, f"{layer}.{kind}.self.query")
                keys, values = (self.linear(x if other is None else other, f"{layer}.{kind}.self.{n}") for n in ("key", "value"))
                x = self.norm(
                    x + self.linear(self.attend(q, keys, values), f"{layer}.{kind}.output.dense"), f"{layer}.{kind}.output.LayerNorm", 1e-12
                )
            wide = F.gelu(self.linear(x, f"{layer}.intermediate.dense"))
            x = self.norm(x + self.linear(wide, f"{layer}.output.dense"), f"{layer}.output.LayerNorm", 1e-12)
        return x[0]

    def score(self, ids: list[int], image: Image.Image) -> float:
        wide = image.resize((38, 32), Image.Resampling.BICUBIC).crop((3, 0, 35, 32))
        pixels = torch.from_numpy(np.array(wide)).permute(2, 0, 1) / 255
        mean, std = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
        x = self.read(ids, self.see((pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]))
        for k in (0, 2, 4, 6, 7):
            x = self.linear(x, f"mlp.layers.{k}")
        return (x.item() - 0.16717362830052426) / 1.0333394966054072


@pytest.mark.parametrize("prompt", ["a red circle", "two dogs on a hill " * 9])
def test_image_reward_matches_its_paper(keys: Any, prompt: str) -> None:
    given, images = keys("ImageReward"), pictures(3)
    ids = AutoTokenizer.from_pretrained(given["processor_name_or_path"])(prompt, truncation=True, max_length=35)["input_ids"]
    by_hand = ByHand(given["model_name_or_path"])
    expected = torch.tensor([by_hand.score(ids, image) for image in images])
    assert expected.std() > 0.01 and (len(ids) == 35) == (len(prompt) > 50)
    found = rewards("ImageReward", **given).score([Row(0, prompt)], [images])[0][:, 0]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


# -- CLAP -------------------------------------------------------------------------------------------------------------------------------


def sound(seconds: float, rate: int, pitch: float, channels: int = 2) -> np.ndarray:
    time = np.arange(round(seconds * rate)) / rate
    return np.stack([np.sin(2 * np.pi * pitch * time * (c + 1)) * (0.3 + 0.2 * np.sin(time)) for c in range(channels)]).astype(np.float32)


def heard(reward: Any, prompts: list[str], sounds: list[tuple[np.ndarray, int]]) -> Tensor:
    clips = [Clip(pictures(1), 8.0, audio, rate) for audio, rate in sounds]
    return torch.cat(reward.score([Row(k, p) for k, p in enumerate(prompts)], [[clip] for clip in clips]))[:, 0]


def test_clap_matches_transformers_and_hears_long_sound_whole(keys: Any) -> None:
    given, rate = keys("clap"), 48_000
    reward, prompts = rewards("clap", **given), ["a red circle", "two dogs"]
    folder = given["model_name_or_path"]
    model, extract, words = (c.from_pretrained(folder) for c in (ClapModel, ClapFeatureExtractor, AutoTokenizer))

    @torch.no_grad()
    def by_hand(prompt: str, wave: np.ndarray) -> float:
        inputs = words([prompt], return_tensors="pt") | extract(wave, sampling_rate=rate, return_tensors="pt")
        output = model(**inputs)
        return torch.cosine_similarity(output.audio_embeds, output.text_embeds).item()

    short, long = sound(3, rate, 220), np.concatenate([sound(7.5, rate, 330), sound(7.5, rate, 3300)], 1)
    found = heard(reward, prompts, [(short, rate), (long, rate)])
    wave = long.mean(0)
    halves = [by_hand(prompts[1], half) for half in (wave[: wave.size // 2], wave[wave.size // 2 :])]
    expected = torch.tensor([by_hand(prompts[0], short.mean(0)), sum(halves) / 2])
    assert abs(halves[0] - halves[1]) > 1e-3 and expected.diff().abs() > 1e-3
    assert not model.training
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert torch.equal(found, heard(reward, prompts, [(short, rate), (long, rate)])), "nothing is left to chance"
    turned = heard(rewards("clap", 1, **given), prompts[::-1], [(long, rate), (short, rate)]).flip(0)
    torch.testing.assert_close(turned, found, atol=1e-5, rtol=0)


def test_clap_resamples_and_gives_no_score_without_a_sample(keys: Any) -> None:
    reward = rewards("clap", **keys("clap"))
    a, b = heard(reward, ["a dog"] * 2, [(sound(2, 48_000, 220), 48_000), (sound(2, 16_000, 220), 16_000)])
    other = heard(reward, ["a dog"], [(sound(2, 48_000, 880), 48_000)])[0]
    assert abs(a - b) < abs(a - other) / 5, "the same sound at another rate"
    empty = heard(reward, ["a dog"] * 2, [(np.zeros((2, 0), np.float32), 48_000), (sound(2, 48_000, 220), 48_000)])
    assert empty[0].isnan() and empty[1] == pytest.approx(a.item(), abs=1e-5)


# -- files ------------------------------------------------------------------------------------------------------------------------------


class Strange:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("ran"),)


def test_a_strangers_file_never_runs_code(keys: Any, tmp_path: Path) -> None:
    """Neither torch's zip, nor a bare pickle, nor one that a name of safetensors hides."""
    torch.save({"layers.0.weight": Strange()}, tmp_path / "zip.pth")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Strange(), protocol=2))
    (tmp_path / "hidden.safetensors").write_bytes(pickle.dumps(Strange(), protocol=2))
    for name in ("zip.pth", "bare.pth", "hidden.safetensors"):
        with pytest.raises(UserError, match=f"reward 'it': head_name_or_path: .*{name}") as caught:
            rewards("aesthetic", **{**keys("aesthetic"), "head_name_or_path": str(tmp_path / name)})
        assert "\n" not in str(caught.value)
    assert not Path("ran").exists()


def test_a_file_of_weights_may_be_safetensors_and_must_be_whole(keys: Any, tmp_path: Path) -> None:
    given, images = keys("aesthetic"), [pictures(2)]
    tensors = torch.load(given["head_name_or_path"])
    save_file(tensors, tmp_path / "head.safetensors")

    def scores(**extra: str) -> torch.Tensor:
        return rewards("aesthetic", **given | extra).score([Row(0, "a")], images)[0]

    assert torch.equal(scores(head_name_or_path=str(tmp_path / "head.safetensors")), scores())
    damaged: dict[str, Any] = {
        "lacks the tensor '7.bias'": {k: v for k, v in tensors.items() if k != "layers.7.bias"},
        r"'7.bias' is \[2\] where \[1\] is wanted": tensors | {"layers.7.bias": torch.zeros(2)},
        "'6.weight' is not a number": tensors | {"layers.6.weight": tensors["layers.6.weight"] * torch.nan},
        "holds no tensors by name": [1],
    }
    for said, value in damaged.items():
        torch.save(value, tmp_path / "head.pth")
        with pytest.raises(UserError, match=f"reward 'it': head_name_or_path: .*{said}"):
            scores(head_name_or_path=str(tmp_path / "head.pth"))
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    (tmp_path / "head.pth").write_bytes(buffer.getvalue()[:1000])
    with pytest.raises(UserError, match="cannot be read as tensors"):
        scores(head_name_or_path=str(tmp_path / "head.pth"))


@pytest.mark.parametrize(
    ("name", "key"), [("aesthetic", "head_name_or_path"), ("HPSv2", "model_name_or_path"), ("ImageReward", "model_name_or_path")]
)
def test_a_file_of_weights_is_asked_for_before_anything_is_loaded(
    keys: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, key: str
) -> None:
    def asked(file: str, now: bool = False) -> None:
        require_files([RewardArguments(name="it", reward_model=name, extra_kwargs={**keys(name), key: file})], now)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("flow_factory.utils.hub.unreachable", lambda: "HF_HUB_OFFLINE is set")
    asked(keys(name)[key], now=True)
    asked("owner/model/deep/file.pt")
    with pytest.raises(UserError, match="'owner/model' is not in the hub's cache, and HF_HUB_OFFLINE is set"):
        asked("owner/model/deep/file.pt", now=True)
    for wrong in ("gone.pt", "./gone/there.pt", "owner/gone.pt", str(tmp_path), f"{tmp_path}/gone/head.pth"):
        with pytest.raises(UserError, match=f"reward 'it': {key}: '{wrong}' is not a file; write the path of a file, or owner/repository"):
            asked(wrong)
