"""Each reward against an independent computation of it."""

import io
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor, CLIPModel

from flow_factory.config.signature import class_attribute
from flow_factory.hparams import RewardArguments
from flow_factory.rewards import REWARDS, GroupwiseRewardModel, PointwiseRewardModel
from flow_factory.rewards.loading import require_files
from flow_factory.rewards.needs import needs_of
from flow_factory.rewards.pick_score import ranks
from flow_factory.types import Clip, Row
from flow_factory.utils.errors import UserError
from tests.conftest import ROOT, cells
from tests.rewards.reward_set import pictures, rewards, scores
from tests.tiny.clip import save_clip
from tests.tiny.hub import cached

LONG = "a red circle above a blue square and " * 12
PROMPTS = ["a red circle", "two dogs on a hill", LONG]
QUOTING = [f'{prompt} "{said}"' for prompt, said in zip(PROMPTS, ("stop here", "post", "the rest"), strict=True)]


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


def cosine_by_hand(folder: Path, prompt: str, image: Image.Image) -> tuple[float, float]:
    """(cosine, exp(logit_scale)) of one unpadded pair, through CLIP's own forward."""
    inputs = AutoProcessor.from_pretrained(folder)(text=[prompt], images=[image], truncation=True, max_length=77, return_tensors="pt")
    model = CLIPModel.from_pretrained(folder).eval()
    with torch.no_grad():
        logit, scale = model(**inputs).logits_per_image.item(), model.logit_scale.exp().item()
    return logit / scale, scale


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Detectors see small pictures, not of 800 pixels."""
    monkeypatch.setattr("flow_factory.rewards.gen_eval.SHORTER", 64)


MEASURED = [name for name, path in REWARDS.table.items() if not re.search("judges|remote|clap", path)]
"""Rewards of pictures; test_judges, test_service and test_reward_models have the same of the others."""
COLUMNS: dict[str, Any] = {
    "objects": [{"color": "red", "shape": "circle", "count": 2}, {"color": "blue", "shape": "square", "count": 1}],
    "relation": "left of",
    "tags": {"deep": ["a"]},
    "include": [{"class": "dog", "count": 1, "color": "red"}],
}
"""What rewards ask of a row, beside its prompt."""
KINDS = [(name, kind) for name in (*MEASURED, "clap") for kind in ("image", "video")]


@cells("name", "kind", KINDS, [(name, "video") for name in ("GenEval", "HPSv2", "ImageReward", "OCR", "PickScore_Rank", "aesthetic")])
@pytest.mark.usefixtures("small")
def test_a_reward_that_gets_no_copies_leaves_all_as_it_was(keys: Callable[[str], dict[str, Any]], name: str, kind: str) -> None:
    cls = REWARDS[name]
    if kind not in cls.required_fields:
        with pytest.raises(UserError, match=f"and the model makes (silent )?{kind}s"):
            needs_of("it", cls).require_media(kind, False)
        return
    assert not cls.changes_inputs, "it gets the pictures themselves"
    media = pictures(3) if kind == "image" else [Clip(pictures(2, seed), 8.0) for seed in range(3)]
    frames = [frame for one in media for frame in (one.frames if isinstance(one, Clip) else [one])]
    before = [(id(f), f.mode, f.size, f.info.copy(), f.tobytes()) for f in frames], repr(COLUMNS), len(media)
    reward = rewards(name, **keys(name))
    first = scores(reward, media, **COLUMNS)
    assert torch.equal(first, scores(reward, media, **COLUMNS)) and first.isfinite().all()
    again = [frame for one in media for frame in (one.frames if isinstance(one, Clip) else [one])]
    assert ([(id(f), f.mode, f.size, f.info, f.tobytes()) for f in again], repr(COLUMNS), len(media)) == before


@pytest.mark.parametrize("prompt", PROMPTS)
def test_clip_and_pick_score_match_transformers(clip: Path, prompt: str) -> None:
    images = pictures(2)
    expected = torch.tensor([cosine_by_hand(clip, prompt, image) for image in images])
    assert expected[:, 0].std() > 0.01, "the checkpoint must tell pictures apart"
    row = [Row(0, prompt)]
    cosines = rewards("CLIP", model_name_or_path=str(clip)).score(row, [images])[0][:, 0]
    torch.testing.assert_close(cosines, expected[:, 0], atol=1e-5, rtol=0)
    picks = rewards("PickScore", model_name_or_path=str(clip)).score(row, [images])[0][:, 0]
    torch.testing.assert_close(picks, expected.prod(1) / 26, atol=1e-4, rtol=0)


def test_the_processor_can_be_another_folder(clip: Path, tmp_path: Path) -> None:
    bare = tmp_path / "weights"
    CLIPModel.from_pretrained(clip).save_pretrained(bare)
    apart = rewards("CLIP", model_name_or_path=str(bare), processor_name_or_path=str(clip))
    assert torch.equal(scores(apart, pictures(2)), scores(rewards("CLIP", model_name_or_path=str(clip)), pictures(2)))


@pytest.mark.parametrize("name", MEASURED)
@pytest.mark.usefixtures("small")
def test_scores_do_not_depend_on_the_batch_its_order_or_its_size(keys: Callable[[str], dict[str, Any]], name: str) -> None:
    rows, media = [Row(k, p, columns=COLUMNS) for k, p in enumerate(QUOTING)], [pictures(3, seed=k) for k in range(3)]
    if "image" not in REWARDS[name].required_fields:
        media = [[Clip(pictures(2, seed=10 * k + seed), 8.0) for seed in range(3)] for k in range(3)]
    small, large = (rewards(name, size, **keys(name)) for size in (2, 64))
    found = torch.stack(large.score(rows, media))
    turned = torch.stack(small.score(rows[::-1], [group[::-1] for group in media[::-1]]))
    torch.testing.assert_close(turned.flip(0, 1), found, atol=1e-4, rtol=1e-4)


def test_pick_score_rank_is_the_rank_in_the_group_over_its_size(clip: Path) -> None:
    rows, media = [Row(k, p) for k, p in enumerate(PROMPTS)], [pictures(n, seed=n) for n in (5, 4, 1)]
    by_score, by_rank = (rewards(m, model_name_or_path=str(clip)).score(rows, media) for m in ("PickScore", "PickScore_Rank"))
    for group, ranked in zip(by_score, by_rank, strict=True):
        assert torch.equal(ranked, group.argsort(0).argsort(0) / len(group))


def test_equal_pictures_rank_equally() -> None:
    assert ranks(torch.tensor([0.3, 0.1, 0.3, 0.9])).tolist() == [1.5, 0, 1.5, 3]


def as_array(frames: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(f) for f in frames])


def as_tensor(frames: list[Image.Image]) -> Tensor:
    return torch.from_numpy(as_array(frames)).permute(0, 3, 1, 2) / 255


@pytest.mark.parametrize("form", [list, as_array, as_tensor])
@pytest.mark.parametrize("name", ["CLIP", "jpeg_compressibility"])
def test_a_video_scores_the_mean_of_its_frames(clip: Path, name: str, form: Callable) -> None:
    reward = rewards(name, model_name_or_path=str(clip)) if name == "CLIP" else rewards(name)
    long, short = pictures(3), pictures(2, seed=1)
    expected = torch.stack([scores(reward, frames).mean() for frames in (long, short)])
    torch.testing.assert_close(scores(reward, [form(long), form(short)]), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("path", ["/no/such/folder", "here"])
def test_weights_that_do_not_load_are_named_in_one_sentence(path: str, tmp_path: Path) -> None:
    path = str(tmp_path) if path == "here" else path
    with pytest.raises(
        ValueError, match="reward .it.(: model_name_or_path: .* is neither a folder nor a hub name| cannot load its CLIP processor from)"
    ) as caught:
        rewards("CLIP", model_name_or_path=path)
    assert path in str(caught.value) and "\n" not in str(caught.value)


def test_a_checkpoint_without_some_of_its_weights_is_refused(clip: Path, tmp_path: Path) -> None:
    model = CLIPModel.from_pretrained(clip)
    state = {k: v for k, v in model.state_dict().items() if k != "visual_projection.weight"}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ValueError, match="lacks weights, e.g. visual_projection.weight"):
        rewards("CLIP", model_name_or_path=str(tmp_path), processor_name_or_path=str(clip))


def test_jpeg_rewards_are_the_size_of_the_file() -> None:
    images = [*pictures(2), Image.new("RGB", (40, 48), "red")]
    sizes = []
    for image in images:
        file = io.BytesIO()
        image.save(file, "jpeg", quality=95)
        sizes.append(len(file.getvalue()) / 1000 / 500)
    assert scores(rewards("jpeg_compressibility"), images).tolist() == pytest.approx([-s for s in sizes])
    assert scores(rewards("jpeg_incompressibility"), images).tolist() == pytest.approx(sizes)


def test_saturation_is_hsvs_and_high_frequency_the_share_of_fine_detail() -> None:
    images = [*pictures(2), Image.new("RGB", (40, 48), "red"), Image.new("RGB", (40, 48), "grey"), Image.new("RGB", (40, 48))]
    expected = [np.asarray(image.convert("HSV"))[..., 1].mean() / 255 for image in images]
    assert scores(rewards("saturation"), images).tolist() == pytest.approx(expected, abs=2e-3)
    rng, x = np.random.default_rng(0), np.arange(64)
    waves = [np.broadcast_to(np.rint(127 + 100 * np.cos(2 * np.pi * f * x)), (64, 64)) for f in (0.05, 0.2, 0.3, 0.45)]
    grey = [*waves, rng.integers(0, 256, (64, 64)), np.full((64, 64), 90)]
    found = scores(rewards("high_frequency"), [Image.fromarray(g.astype(np.uint8)).convert("RGB") for g in grey]).tolist()
    assert found[:4] == pytest.approx([0, 0, 1, 1], abs=0.05) and found[4] == pytest.approx(1 - np.pi / 16, abs=0.05) and found[5] == 0


@pytest.mark.parametrize("name", list(REWARDS))
def test_every_name_of_the_table_leads_to_a_reward_that_declares_its_keys(name: str) -> None:
    cls = REWARDS[name]
    assert issubclass(cls, PointwiseRewardModel | GroupwiseRewardModel) and cls.extra_keys is not None
    assert class_attribute(REWARDS.path(name), "extra_keys") == cls.extra_keys, "the YAML is compared with its source"


def test_the_package_imports_without_torch() -> None:
    code = "import sys, flow_factory.rewards; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_hub_name_without_network_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flow_factory.utils.hub.unreachable", lambda: "huggingface.co cannot be reached (no route)")
    asked: list[Any] = []
    monkeypatch.setattr("httpx.Client.send", lambda *given, **more: asked.append(given))
    said = "reward 'it': model_name_or_path: .*'nobody/nothing' is not in the hub's cache, and huggingface.co cannot be reached"
    with pytest.raises(UserError, match=said):
        rewards("CLIP", model_name_or_path="nobody/nothing")
    assert asked == []


@pytest.mark.parametrize("model", ["CLIP", "PickScore", "PickScore_Rank"])
def test_a_rewards_own_model_is_looked_at_before_anything_is_loaded(
    tmp_path: Path, clip: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder, and in the hub's cache; what is in neither may be downloaded, which a check does not ask for."""

    def asked(name: str, now: bool = False, **others: str) -> None:
        require_files([RewardArguments(name="it", reward_model=model, extra_kwargs={"model_name_or_path": name, **others})], now)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("flow_factory.utils.hub.unreachable", lambda: "HF_HUB_OFFLINE is set")
    snapshot = cached("owner/clip", clip, tmp_path / "hub")
    for name in (str(clip), "owner/clip", "owner/other"):
        asked(name)
    asked("owner/clip", now=True)
    with pytest.raises(UserError, match="'owner/other' is not in the hub's cache, and HF_HUB_OFFLINE is set"):
        asked("owner/other", now=True)
    with pytest.raises(UserError, match="reward 'it': processor_name_or_path: './gone' is neither a folder"):
        asked(str(clip), processor_name_or_path="./gone")
    with pytest.raises(UserError, match="reward 'it': model_name_or_path: 'a b/c' is neither a folder nor a hub name"):
        asked("a b/c")
    weights = snapshot / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    for name in (str(snapshot), "owner/clip"):
        with pytest.raises(UserError, match=f"reward 'it': model_name_or_path: {weights} is truncated or damaged"):
            asked(name)
