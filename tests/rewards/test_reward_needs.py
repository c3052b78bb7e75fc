"""What a reward's class takes is read before it is constructed, and what is wrong with it is a line."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from flow_factory.config import load_config
from flow_factory.hparams import RewardArguments
from flow_factory.rewards import GroupwiseRewardModel, PointwiseRewardModel
from flow_factory.rewards.loading import require_rewards
from flow_factory.rewards.needs import needs_of
from flow_factory.types import Clip, Row
from flow_factory.utils.errors import UserError
from tests.rewards.reward_set import judged, pictures, scores
from tests.tiny.run import write_run


class Tensors(PointwiseRewardModel):
    required_fields = ("prompt", "video")
    use_tensor_inputs = True

    def __call__(self, video: list, audio: list, audio_sample_rate: list, **columns: Any) -> list[float]:
        assert audio[0].shape == (2, 5) and audio[0].dtype == torch.float32 and audio_sample_rate == [24_000] * len(video)
        assert "audio" not in columns
        means = [float(v.mean() + a.mean()) for v, a in zip(video, audio, strict=True)]
        for one in (*video, *audio):
            one.zero_()
        return means


def clip(sound: bool = True) -> Clip:
    return Clip(pictures(2), 8.0, torch.rand(2, 5).numpy() if sound else None, 24_000 if sound else None)


def test_sound_reaches_rewards_with_its_rate_and_not_the_data_sets_column() -> None:
    media, reward = [clip(), clip()], judged(Tensors)
    row = Row(0, "x", columns={"audio": "a path", "audio_sample_rate": 1})
    first, second = (reward.score([row], [media])[0].tolist() for _ in range(2))
    assert first == second and first[0] != first[1]
    with pytest.raises(UserError, match="reward 'hears' scores sound, and the model makes silent videos"):
        require(Hears, "video", sounds=False)
    require(Hears, "video", sounds=True)


class Hears(PointwiseRewardModel):
    required_fields = ("prompt", "audio")

    def __call__(self, audio: list, **columns: Any) -> list[float]:
        return [float(a.mean()) for a in audio]


class Either(PointwiseRewardModel):
    """As public templates have it: no required_fields, and every kind of media an option."""

    def __call__(self, prompt: list[str], image: Any = None, video: Any = None, condition_images: Any = None) -> list[float]:
        return [float(len(v)) for v in (video or image)]


class OnlyImages(PointwiseRewardModel):
    def __call__(self, prompt: list[str], image: list, target: list, extra: Any = None) -> list[float]:
        return [1.0] * len(image)


class Text(PointwiseRewardModel):
    required_fields = "image"

    def __call__(self, image: list, **columns: Any) -> list[float]:
        return [1.0] * len(image)


def require(cls: type, kind: Any = "image", sounds: bool = False, **columns: Any) -> None:
    entry = RewardArguments(name=cls.__name__.lower(), reward_model=f"{cls.__module__}:{cls.__name__}")
    for needs in require_rewards([entry], kind, sounds):
        needs.require_columns(Row(0, "x", columns=columns))


def test_what_a_class_takes_is_read_from_its_call_where_it_does_not_say() -> None:
    require(Either), require(Either, "video")
    assert judged(Either).score([Row(0, "x")], [[clip(sound=False)] * 2])[0][:, 0].tolist() == [2.0, 2.0]
    with pytest.raises(UserError, match="reward 'onlyimages' scores image, and the model makes videos"):
        require(OnlyImages, "video", target=1)
    with pytest.raises(UserError, match="reward 'onlyimages' needs the column 'target'"):
        require(OnlyImages)
    require(OnlyImages, target=1)


@pytest.mark.parametrize("fields", ["image", ("image",), ["image"], {"image"}, frozenset(["image"])])
def test_required_fields_may_be_a_text(fields: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Text, "required_fields", fields)
    assert needs_of("text", Text).required == ("image",)
    require(Text)
    assert scores(judged(Text), pictures(2)).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("fields", [5, {"image": 1}, ("image", 3), ("",), [["image"]], property(lambda self: ("image",)), b"image"])
def test_required_fields_that_are_no_names_are_refused(fields: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Text, "required_fields", fields)
    with pytest.raises(UserError, match=r"reward 'text': required_fields is .*; write a tuple of names, such as"):
        require(Text)


def test_a_misspelt_kind_of_media_is_near_the_right_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Text, "required_fields", ("images",))
    with pytest.raises(UserError, match="needs the column 'images'.*Did you mean 'image'?"):
        require(Text)


class Abstract(PointwiseRewardModel):
    pass


class ThreeArguments(Text):
    def __init__(self, config: RewardArguments, accelerator: Accelerator, threshold: float):
        super().__init__(config, accelerator)


class Base(GroupwiseRewardModel.__mro__[1]):  # type: ignore[misc]
    def __call__(self, prompt: list[str]) -> list[float]:
        return []


@pytest.mark.parametrize(("cls", "message"), [
    (Abstract, "has no __call__"),
    (ThreeArguments, r"is constructed with \(config, accelerator\), and missing a required argument: 'threshold'"),
    (Base, "is neither a PointwiseRewardModel nor a GroupwiseRewardModel"),
])  # fmt: skip
def test_a_class_that_is_no_reward_is_known_without_constructing_it(cls: type, message: str) -> None:
    with pytest.raises(UserError, match=message):
        require(cls)


@pytest.mark.parametrize(("key", "near"), [
    ("wieght", "'weight'"), ("batchsize", "'batch_size'"), ("threshhold", "'threshold'"), ("max_second", "'max_seconds'"),
    ("threshold", None), ("timeout", None), ("api_base", None),
])  # fmt: skip
def test_a_key_that_is_almost_one_is_refused(tmp_path: Path, key: str, near: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "keyed.py").write_text(
        "from flow_factory.rewards import PointwiseRewardModel\n\n\nclass Keyed(PointwiseRewardModel):\n"
        "    def __call__(self, image):\n        return [self.config.extra_kwargs['threshold']] * len(image)\n"
    )
    monkeypatch.chdir(tmp_path)
    given = [f"rewards={{reward_model: keyed.Keyed, {key}: 1}}"]
    if near is None:
        assert load_config(write_run(tmp_path), given).rewards[0].extra_kwargs == {key: 1}
        return
    with pytest.raises(UserError, match=f"rewards.{key}: unknown key; .* Did you mean {near}"):
        load_config(write_run(tmp_path), given)
