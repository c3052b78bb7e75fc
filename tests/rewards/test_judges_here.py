"""A vision-language model as judge on this machine, against its own forward by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor

from flow_factory.hparams import RewardArguments
from flow_factory.rewards.loading import require_files
from flow_factory.types import Row
from flow_factory.utils.errors import UserError
from tests.rewards.judging import VQA
from tests.rewards.reward_set import rewards
from tests.tiny.encoders import qwen_processor


@pytest.fixture(scope="module")
def vlm(keys: Callable[[str], dict[str, Any]]) -> Path:
    return Path(keys("vlm")["model_name_or_path"])


def by_hand(folder: Path, said: str, image: Image.Image) -> Tensor:
    """(vocabulary,) probabilities of the answer's first token, by the model's own forward on a chat written out."""
    processor = qwen_processor()
    chat = f"<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{said}<|im_end|>\n<|im_start|>assistant\n"
    inputs = processor(text=[chat], images=[image], return_tensors="pt")
    model = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(**inputs).logits[0, -1].softmax(-1)


def test_a_judge_here_weighs_the_first_token_too(vlm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flow_factory.rewards.judges.verdict.LEAST", 0.0)  # a random one says neither
    (tmp_path / "mine.yaml").write_text("user: '{image}Is it {prompt}?'\nanswers: [red, blue]")
    config: dict[str, Any] = {"model_name_or_path": str(vlm), "template": "mine.yaml"}
    images = [Image.new("RGB", (56, 56), color) for color in ("red", "green", "blue")]
    found = rewards("vlm_yes_no", **config).score([Row(0, "a circle")], [images])[0][:, 0]
    encode = qwen_processor().tokenizer.encode
    expected = []
    for image in images:
        likely = by_hand(vlm, "Is it a circle?", image)
        ids = [{encode(s + f)[0] for f in (w, w.upper(), w.capitalize()) for s in ("", " ")} for w in ("red", "blue")]
        sums = [sum(likely[k].item() for k in one) for one in ids]
        expected.append(sums[0] / sum(sums))
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-4, rtol=0)
    alone = rewards("vlm_yes_no", 1, **config).score([Row(0, "a circle")], [images[::-1]])[0][:, 0]
    assert torch.equal(alone.flip(0), found), "its neighbours move nothing, not by a bit"


def test_soft_tifa_here_and_an_answer_without_an_end(vlm: Path) -> None:
    image = Image.new("RGB", (56, 56), "red")
    found = rewards("GenEval2", model_name_or_path=str(vlm)).score([Row(0, "a", columns={"vqa_list": VQA[1:]})], [[image]])[0][0, 0]
    encode = qwen_processor().tokenizer.encode
    likely = by_hand(vlm, "Is the dog red? Answer in one word.", image)
    assert found == pytest.approx(sum(likely[k].item() for k in {encode(w)[0] for w in ("Yes", "yes", " yes", " Yes")}), abs=1e-5)
    wordy = rewards("vlm_rubric", model_name_or_path=str(vlm), max_tokens=3)
    assert wordy.score([Row(0, "a")], [[image]])[0].isnan().all()
    wordy.rewards[0].config.max_missing = 1.0
    wordy.finish_epoch()


def test_a_checkpoint_of_a_judge_is_looked_at_before_anything_is_loaded(vlm: Path) -> None:
    require_files([RewardArguments(name="it", reward_model="GenEval2", extra_kwargs={"model_name_or_path": str(vlm)})], now=True)
    with pytest.raises(UserError, match="reward 'it': model_name_or_path: './gone' is neither a folder"):
        require_files([RewardArguments(name="it", reward_model="GenEval2", extra_kwargs={"model_name_or_path": "./gone"})], now=True)
