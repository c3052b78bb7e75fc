"""HPSv3 and VideoReward: from the published file and transformers' own Qwen2-VL, as the authors' code runs it, on tiny random weights."""

import hashlib
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Qwen2VLForConditionalGeneration, Qwen2VLImageProcessorPil

from flow_factory.hparams import RewardArguments
from flow_factory.rewards import hpsv3
from flow_factory.rewards.loading import require_files
from flow_factory.rewards.qwen2_vl import patches
from flow_factory.rewards.sources import tensors_in
from flow_factory.rewards.video_align import chosen, merged
from flow_factory.types import Clip, Row
from flow_factory.utils.errors import UserError
from tests.rewards.reward_set import pictures, rewards
from tests.tiny.text import qwen_tokenizer
from tests.tiny.vlm_rewards import qwen2_vl_config


def published(tensors: dict[str, Tensor]) -> Qwen2VLForConditionalGeneration:
    """As the authors' code has it: all of it in bfloat16 and back, which rounds the frequencies too, and then the weights."""
    model = Qwen2VLForConditionalGeneration(qwen2_vl_config(tensors["model.embed_tokens.weight"].shape[0])).bfloat16().float()
    for name, weight in model.state_dict().items():
        weight.copy_(tensors[name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")])
    return model.eval()


def ids_of(tokens: list[str], media: str, seen: int, text: str) -> Tensor:
    """(1, n): the chat, written out."""
    tokenizer = qwen_tokenizer()
    tokenizer.add_tokens(tokens, special_tokens=True)
    places = f"<|vision_start|>{f'<|{media}_pad|>' * seen}<|vision_end|>"
    return tokenizer(f"<|im_start|>user\n{places}{text}<|im_end|>\n<|im_start|>assistant\n", return_tensors="pt")["input_ids"]


def hidden(model: Any, ids: Tensor, **seen: Tensor) -> Tensor:
    """(n, width), every token at its own place in one row."""
    row = torch.arange(ids.shape[1]).expand(3, 1, -1)
    with torch.no_grad():
        return model.model(input_ids=ids, position_ids=row, use_cache=False, **seen).last_hidden_state[0]


@pytest.mark.parametrize("size", [(90, 30), pytest.param((40, 40), marks=pytest.mark.exhaustive)])
def test_hpsv3_is_the_mean_of_its_head_at_the_reward_token(keys: Any, size: tuple[int, int]) -> None:
    given, images = keys("HPSv3"), [image.resize(size, 0) for image in pictures(2)]
    tensors = tensors_in(RewardArguments(name="it", reward_model="HPSv3"), "model_name_or_path", given["model_name_or_path"])
    model, expected = published(tensors), []
    processor = Qwen2VLImageProcessorPil(size={"shortest_edge": 200704, "longest_edge": 200704})
    for image in images:
        seen = processor(image, return_tensors="pt")
        tokens = int(seen["image_grid_thw"].prod()) // 4
        text = "How good is this for a red circle?\nIt is <|Reward|>\nEND\n"
        ids = ids_of(["<|Reward|>"], "image", tokens, text)
        x = hidden(model, ids, **seen)[ids[0] == len(qwen_tokenizer())][0].double()
        for k in (0, 3, 5):
            x = tensors[f"rm_head.{k}.weight"].double() @ (x.relu() if k else x) + tensors[f"rm_head.{k}.bias"].double()
        expected.append(x[0].item())
    assert abs(expected[0] - expected[1]) > 1e-3
    found = rewards("HPSv3", **given).score([Row(0, "a red circle")], [images])[0][:, 0]
    torch.testing.assert_close(found, torch.tensor(expected), atol=2e-5, rtol=1e-4)


@pytest.mark.exhaustive
def test_hpsv3_of_a_video_is_the_mean_of_its_frames_and_a_prompt_names_no_token(keys: Any) -> None:
    reward, images = rewards("HPSv3", **keys("HPSv3")), pictures(2)
    frames = reward.score([Row(0, "a <|Reward|> b")], [images])[0]
    clip = Clip(np.stack([np.array(image) for image in images]), 8)
    torch.testing.assert_close(reward.score([Row(0, "a <|Reward|> b")], [[clip]])[0][0], frames.mean(0))


def frames_of(count: int) -> list[Image.Image]:
    return [Image.fromarray(np.random.RandomState(k).randint(0, 256, (40, 60, 3), dtype=np.uint8)) for k in range(count)]


def by_hand(frames: list[Image.Image]) -> tuple[Tensor, Tensor]:
    """Patches of frames whose sides are multiples of 28: four neighbours follow each other, pairs of frames lie inside each."""
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    x = np.stack([(np.array(frame) / 255 - mean) / std for frame in frames])
    rows, columns = x.shape[1] // 14, x.shape[2] // 14
    cut = [
        x[2 * t : 2 * t + 2, 14 * (2 * i + a) : 14 * (2 * i + a) + 14, 14 * (2 * j + b) : 14 * (2 * j + b) + 14].transpose(3, 0, 1, 2)
        for t in range(len(frames) // 2) for i in range(rows // 2) for j in range(columns // 2) for a in range(2) for b in range(2)
    ]  # fmt: skip
    return torch.from_numpy(np.stack(cut)).float().flatten(1), torch.tensor([[len(frames) // 2, rows, columns]])


def test_patches_of_frames_are_cut_as_by_hand() -> None:
    frames = [frame.resize((84, 56)) for frame in frames_of(4)]
    pixels = torch.stack([torch.from_numpy(np.array(frame)).permute(2, 0, 1) / 255 for frame in frames])
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    found = patches((pixels - mean[:, None, None]) / std[:, None, None], qwen2_vl_config(9).vision_config)
    for one, other in zip(found, by_hand(frames), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_video_reward_is_the_sum_of_its_aspects_at_their_tokens_with_the_lora_that_peft_runs(keys: Any) -> None:
    """The LoRA is alpha 128 over rank 4 here."""
    given, frames = keys("VideoAlign"), frames_of(9)
    tensors = torch.load(given["model_name_or_path"])
    plain = {name.removeprefix("base_model.model."): tensor for name, tensor in tensors.items()}
    model = published({name.replace(".base_layer", ""): tensor for name, tensor in plain.items()})
    names = [n for n, m in model.model.language_model.named_modules() if isinstance(m, torch.nn.Linear)]
    wrapped: Any = get_peft_model(model.model.language_model, LoraConfig(r=4, lora_alpha=128, target_modules=names))
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data = plain[name.replace("base_model.model.", "model.")]
    model.model.language_model = wrapped.eval().base_model.model
    seen = [frame.resize((392, 280), Image.Resampling.BICUBIC) for frame in (frames[0], frames[3], frames[5], frames[8])]
    patched, grid = by_hand(seen)
    text = "Looks: <|VQ_reward|>\nMotion: <|MQ_reward|>\nShows two dogs: <|TA_reward|>\nEND\n"
    ids = ids_of(["<|VQ_reward|>", "<|MQ_reward|>", "<|TA_reward|>"], "video", 2 * 10 * 14, text)
    x = hidden(model, ids, pixel_values_videos=patched, video_grid_thw=grid)
    raw = (x @ plain["rm_head.weight"].T)[torch.isin(ids[0], torch.arange(3) + len(qwen_tokenizer()))][:, 0]
    aspects = (raw - torch.tensor([3.6757, 1.1646, 2.8105])) / torch.tensor([2.2476, 1.3811, 2.5121])
    clip = Clip(np.stack([np.array(frame) for frame in frames]), 8)
    for extra, expected in (({}, aspects.sum()), ({"aspects": ["TA", "VQ"]}, aspects[0] + aspects[2])):
        found = rewards("VideoReward", **given, **extra).score([Row(0, "two dogs")], [[clip]])[0][0, 0]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("total", "shown", "places"), [
    (81, 16.0, [0, 9, 18, 27, 36, 44, 53, 62, 71, 80]), (9, 16.0, [0, 3, 5, 8]), (3, 8.0, [0, 2]), (1, 8.0, [0, 0]),
])  # fmt: skip
def test_an_even_number_of_frames_is_looked_at(total: int, shown: float, places: list[int]) -> None:
    """qwen-vl-utils' rule, with at least four where there are four."""
    assert chosen(total, shown, 2.0) == places


def test_a_merged_lora_needs_both_of_its_parts() -> None:
    weight = torch.eye(2)
    tensors = {"base_model.model.a.base_layer.weight": weight, "base_model.model.a.lora_A.default.weight": torch.ones(1, 2)}
    assert torch.equal(merged(tensors)["a.weight"], weight)
    both = tensors | {"base_model.model.a.lora_B.default.weight": torch.ones(2, 1)}
    assert torch.equal(merged(both)["a.weight"], weight + 128)


# -- the authors' instruction -----------------------------------------------------------------------------------------------------------


def test_an_instruction_is_read_from_the_authors_file_and_that_is_never_run(
    keys: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = Path(keys("HPSv3")["instruction"]).read_text()
    begin, end = text.split("\n", 1)
    file = tmp_path / "data_collator_qwen.py"
    file.write_text(f"open('ran', 'w')\nINSTRUCTION = {begin + chr(10)!r}\nother = 3\nprompt_with_special_token = {end!r}\n")
    entry = RewardArguments(name="it", reward_model="HPSv3", extra_kwargs={"instruction": str(file)})
    assert hpsv3.INSTRUCTION.read(entry) == text and not Path("ran").exists()
    with caplog.at_level(logging.WARNING):
        replace(hpsv3.INSTRUCTION, sha256=hashlib.sha256(text.encode()).hexdigest()).compare(entry, text)
        assert not caplog.text
        hpsv3.INSTRUCTION.compare(entry, text)
    assert "is not the published text (sha256)" in caplog.text


@pytest.mark.parametrize(("content", "said"), [
    (None, "instruction is missing: the scores depend on the authors' instruction, which is not part of this project; save hpsv3/dataset"),
    ("no place", r"must have \{text_prompt\}, <\|Reward\|> once each"),
    ("{text_prompt} <|Reward|> <|Reward|>", "once each"),
    ("INSTRUCTION = 3", "cannot be read: 'INSTRUCTION'; it should be hpsv3/dataset/data_collator_qwen.py of github.com/MizzenAI/HPSv3"),
    ("INSTRUCTION = (", "cannot be read"),
])  # fmt: skip
def test_an_instruction_that_is_none_is_said_before_anything_is_loaded(keys: Any, tmp_path: Path, content: str | None, said: str) -> None:
    given = {name: value for name, value in keys("HPSv3").items() if name != "instruction"}
    if content is not None:
        file = tmp_path / ("a.py" if "=" in content else "a.txt")
        file.write_text(content)
        given["instruction"] = str(file)
    with pytest.raises(UserError, match=f"reward 'it': .*{said}") as caught:
        require_files([RewardArguments(name="it", reward_model="HPSv3", extra_kwargs=given)], now=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("extra", "said"), [
    ({"aspects": ["VQ", "XX"]}, r"aspects: \['VQ', 'XX'\]; write some of VQ, MQ, TA"), ({"aspects": ["VQ", "VQ"]}, "aspects"),
    ({"aspects": "VQ"}, "aspects"), ({"fps": 0}, "fps: 0; write a number of frames a second above 0"), ({"video_fps": True}, "video_fps"),
])  # fmt: skip
def test_keys_of_video_align_that_are_wrong_are_said(keys: Any, extra: dict[str, Any], said: str) -> None:
    entry = RewardArguments(name="it", reward_model="VideoAlign", extra_kwargs={**keys("VideoAlign"), **extra})
    with pytest.raises(UserError, match=f"reward 'it': {said}"):
        require_files([entry], now=False)


def test_a_base_that_the_weights_are_not_of_is_said(keys: Any, tmp_path: Path) -> None:
    given = keys("HPSv3")
    tensors = load_file(given["model_name_or_path"])
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:-1].clone()
    save_file(tensors, tmp_path / "less.safetensors")
    with pytest.raises(UserError, match=r"words with <\|Reward\|>, and .* it is not what the weights were trained from"):
        rewards("HPSv3", **given | {"model_name_or_path": str(tmp_path / "less.safetensors")})
    for name, key in (("HPSv3", "rm_head.5.weight"), ("VideoAlign", "rm_head.weight")):
        with pytest.raises(UserError, match=f"lacks the tensor '{key}'"):
            torch.save({k: v for k, v in tensors.items() if k != key}, tmp_path / "file.pth")
            rewards(name, **keys(name) | {"model_name_or_path": str(tmp_path / "file.pth")})
