"""Rewards that load a model, each against an independent computation of it on a tiny random checkpoint."""

import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoProcessor, CLIPModel

from flow_factory.errors import UserError
from flow_factory.hparams import RewardArguments
from flow_factory.rewards.loading import require_files
from flow_factory.types import Row
from tests.test_rewards import pictures, rewards

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


@pytest.mark.parametrize(("name", "key"), [("aesthetic", "head_name_or_path"), ("HPSv2", "model_name_or_path")])
def test_a_file_of_weights_is_asked_for_before_anything_is_loaded(
    keys: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, key: str
) -> None:
    def asked(file: str, now: bool = False) -> None:
        require_files([RewardArguments(name="it", reward_model=name, extra_kwargs={**keys(name), key: file})], now)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("flow_factory.hub.unreachable", lambda: "HF_HUB_OFFLINE is set")
    asked(keys(name)[key], now=True)
    asked("owner/model/deep/file.pt")
    with pytest.raises(UserError, match="'owner/model' is not in the hub's cache, and HF_HUB_OFFLINE is set"):
        asked("owner/model/deep/file.pt", now=True)
    for wrong in ("gone.pt", "./gone/there.pt", "owner/gone.pt", str(tmp_path), f"{tmp_path}/gone/head.pth"):
        with pytest.raises(UserError, match=f"reward 'it': {key}: '{wrong}' is no file; write the path of a file, or owner/repository"):
            asked(wrong)
