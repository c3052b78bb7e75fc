"""What a set of rewards does with its entries, with users' own rewards, and with scores that fail."""

import importlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from flow_factory.data.media import save_video
from flow_factory.hparams import RewardArguments
from flow_factory.rewards import PointwiseRewardModel, RewardModelOutput
from flow_factory.rewards.media import convert, kind_of
from flow_factory.rewards.needs import Needs
from flow_factory.rewards.scoring import load_rewards
from flow_factory.types import Clip, Row
from flow_factory.utils.errors import RewardError
from tests.rewards.reward_set import pictures, rewards, scores


class Returns(PointwiseRewardModel):
    """Returns the column `score`; a list or tensor in it stands for all samples, an exception is raised."""

    required_fields = ("prompt",)
    built = 0

    def __init__(self, config: RewardArguments, accelerator: Accelerator):
        super().__init__(config, accelerator)
        type(self).built += 1

    def __call__(self, prompt: list[str], score: list[Any], **columns: Any) -> RewardModelOutput:
        if isinstance(score[0], Exception):
            raise score[0]
        return RewardModelOutput(
            score[0] if isinstance(score[0], list | Tensor) else score, {"error": "server down" if None in score else ""}
        )


RETURNS = f"{__name__}:Returns"


def needing(*fields: str) -> Needs:
    return Needs("it", fields, (), (), open=True)


@pytest.mark.parametrize("missing", [None, math.nan, math.inf, -math.inf])
def test_a_missing_score_is_nan_and_counted(missing: float | None) -> None:
    reward = rewards(RETURNS)
    column = torch.cat(reward.score([Row(k, "x", columns={"score": s}) for k, s in enumerate([missing, 0.0, 2.0])], [pictures(1)] * 3))[
        :, 0
    ]
    assert column.isnan().tolist() == [True, False, False]
    assert column[1:].tolist() == [0.0, 2.0]
    report = reward.finish_epoch()
    assert report["missing/it"] == 1 and report["seconds/it"] > 0
    assert reward.finish_epoch()["missing/it"] == 0, "counts start again"


def test_too_many_missing_scores_stop_the_run_with_the_last_cause() -> None:
    reward = rewards(RETURNS)
    for score in (1.0, None, None):
        scores(reward, pictures(1), score=score)
    with pytest.raises(RewardError, match="reward 'it' gave no score for 2 of 3 samples; at most 50% .*server down"):
        reward.finish_epoch()


@pytest.mark.parametrize(("returned", "shape"), [([1.0, 2.0], "(2,)"), (torch.zeros(1, 3), "(1, 3)"), ([], "(0,)")])
def test_a_wrong_number_of_scores_is_an_error(returned: Any, shape: str) -> None:
    with pytest.raises(RewardError) as caught:
        scores(rewards(RETURNS), pictures(3), score=returned)
    assert str(caught.value) == f"reward 'it' returned scores of shape {shape} for 3 samples"


def test_an_exception_carries_the_name_of_the_reward() -> None:
    with pytest.raises(RewardError, match="reward 'it' failed on 2 samples of row 0: OSError: disk on fire") as caught:
        scores(rewards(RETURNS), pictures(2), score=OSError("disk on fire"))
    assert isinstance(caught.value.__cause__, OSError)


def test_identical_rewards_of_training_and_evaluation_are_loaded_once() -> None:
    def entry(**changes: Any) -> RewardArguments:
        return RewardArguments(**{"name": "a", "reward_model": RETURNS, "extra_kwargs": {"k": [1]}, **changes})

    def loads(train: list[RewardArguments], evaluation: list[RewardArguments] | None) -> int:
        module = importlib.import_module(__name__)
        module.Returns.built = 0
        load_rewards(train, evaluation, Accelerator(cpu=True))
        return module.Returns.built

    assert loads([entry(), entry(name="b", weight=2.0, batch_size=3)], [entry(name="c")]) == 1
    assert loads([entry()], None) == 1
    assert loads([entry()], [entry(dtype=torch.bfloat16)]) == 2
    assert loads([entry()], [entry(extra_kwargs={"k": [2]})]) == 2


def test_columns_of_scores_follow_the_entries() -> None:
    entries = [RewardArguments(name="up", reward_model="jpeg_incompressibility", weight=2.0),
               RewardArguments(name="down", reward_model="jpeg_compressibility")]  # fmt: skip
    train, evaluation = load_rewards(entries, entries[1:], Accelerator(cpu=True))
    assert train.names == ("up", "down") and train.weights == (2.0, 1.0) and evaluation.names == ("down",)
    (table,) = train.score([Row(0, "x")], [pictures(3)])
    assert table.shape == (3, 2) and table.dtype == torch.float32 and torch.equal(table[:, 0], -table[:, 1])
    assert train.score([], []) == []


USERS_OWN = """
from typing import List, Optional
from accelerate import Accelerator
from PIL import Image
import torch
from flow_factory.hparams import RewardArguments
from flow_factory.rewards import GroupwiseRewardModel, PointwiseRewardModel, RewardModelOutput


class Brightness(PointwiseRewardModel):
    required_fields = ("prompt", "image", "target")
    use_tensor_inputs = True

    def __init__(self, config: RewardArguments, accelerator: Accelerator):
        super().__init__(config, accelerator)
        self.gain = config.extra_kwargs["gain"] * getattr(config, "gain", 0) / config.gain
        assert self.device == accelerator.device and self.dtype == torch.float32 and self.config.batch_size == 2

    @torch.no_grad()
    def __call__(
        self,
        prompt: List[str],
        image: Optional[List[torch.Tensor]] = None,
        video: Optional[List[torch.Tensor]] = None,
        condition_images: Optional[List[List[Image.Image]]] = None,
        condition_videos: Optional[List[List[List[Image.Image]]]] = None,
        **kwargs,
    ) -> RewardModelOutput:
        assert len(prompt) == len(image) <= self.config.batch_size and video is None and condition_images is None
        assert kwargs["note"] == ["n"] * len(prompt)
        rewards = torch.stack([i.mean() for i in image]) * self.gain + torch.tensor(kwargs["target"], device=self.device)
        return RewardModelOutput(rewards=rewards, extra_info={})


class Edited(GroupwiseRewardModel):
    required_fields = ("prompt", "image", "condition_images")

    def __call__(self, prompt: List[str], image=None, video=None, condition_images=None, condition_videos=None):
        assert len({*prompt}) == 1 and all(isinstance(i, Image.Image) for i in image)
        return RewardModelOutput(rewards=[len(c) * len(image) for c in condition_images])
"""


@pytest.fixture
def users_own(tmp_path: Path) -> None:
    (tmp_path / "my_rewards.py").write_text(USERS_OWN)


@pytest.mark.usefixtures("users_own")
def test_a_users_reward_in_the_current_folder_runs_by_its_dotted_path() -> None:
    reward = rewards("my_rewards.Brightness", batch_size=2, gain=3.0)
    rows = [Row(k, "x", columns={"target": k, "note": "n", "image": "a path"}) for k in range(2)]
    white = [Image.new("RGB", (8, 8), "white")] * 3
    assert torch.cat(reward.score(rows, [white, white]))[:, 0].tolist() == [3.0] * 3 + [4.0] * 3


def files(folder: Path, *colours: str) -> tuple[str, ...]:
    for colour in colours:
        Image.new("RGB", (8, 8), colour).save(folder / f"{colour}.png")
    return tuple(str(folder / f"{colour}.png") for colour in colours)


@pytest.mark.usefixtures("users_own")
def test_conditions_reach_a_groupwise_reward_whole_groups_at_a_time(tmp_path: Path) -> None:
    reward = rewards("my_rewards.Edited", batch_size=1)
    rows = [Row(0, "x", images=files(tmp_path, "red", "blue")), Row(1, "y", images=files(tmp_path, "white")), Row(2, "z")]
    assert [t[:, 0].tolist() for t in reward.score(rows[:2], [pictures(3), pictures(2)])] == [[6.0] * 3, [2.0] * 2]
    with pytest.raises(ValueError, match="reward 'it' needs condition images, and row 2 has none"):
        reward.score(rows[2:], [pictures(2)])


class Conditioned(PointwiseRewardModel):
    """The brightness of the first condition, image or video frame; checks what it is given."""

    required_fields = ()

    def __call__(self, prompt: list[str], condition_images: Any = None, condition_videos: Any = None) -> RewardModelOutput:
        assert condition_images is None or all(isinstance(i, Image.Image) for one in condition_images for i in one)
        assert condition_videos is None or all(isinstance(f, Image.Image) for one in condition_videos for v in one for f in v)
        given = condition_images or [[frame for video in one for frame in video] for one in condition_videos]
        return RewardModelOutput([float(one[0].getpixel((0, 0))[0]) if one else None for one in given])


def test_conditions_of_several_rows_share_a_batch(tmp_path: Path) -> None:
    black, white = files(tmp_path, "black", "white")
    rows = [Row(0, "x", images=(white, black)), Row(1, "x", images=(black,)), Row(2, "x")]
    tables = rewards(f"{__name__}:Conditioned").score(rows, [pictures(1)] * 3)
    assert torch.cat(tables)[:, 0].nan_to_num(-1).tolist() == [255.0, 0.0, -1.0]
    save_video(Clip([Image.new("RGB", (16, 16), "white")] * 3, 8.0), tmp_path / "v.mp4")
    (table,) = rewards(f"{__name__}:Conditioned").score([Row(0, "x", videos=(str(tmp_path / "v.mp4"),))], [pictures(2)])
    assert table[:, 0].tolist() == [255.0] * 2


def test_condition_files_are_left_alone_where_no_reward_takes_them() -> None:
    gone = Row(0, "x", columns={"score": 1.0}, images=("/gone.png",), source="train.jsonl:3")
    reward = rewards("jpeg_compressibility")
    assert len(reward.score([gone], [pictures(2)])[0]) == 2
    with pytest.raises(ValueError, match="train.jsonl:3: /gone.png: no such image"):
        rewards(f"{__name__}:Conditioned").score([gone], [pictures(2)])


@pytest.mark.parametrize(("field", "message"), [
    ("condition_images", "needs condition images, and row 1 (d.jsonl:2) has none: name them in the data set's column 'image' or 'images'"),
    ("condition_videos", "needs condition videos, and row 0 (d.jsonl:1) has none: name them in the data set's column 'video' or 'videos'"),
])  # fmt: skip
def test_missing_conditions_are_named_before_anything_is_scored(field: str, message: str) -> None:
    rows = [Row(0, "x", images=("a.png",), source="d.jsonl:1"), Row(1, "y", source="d.jsonl:2")]
    with pytest.raises(ValueError) as caught:
        for row in rows:
            needing("prompt", "image", field).require_columns(row)
    assert message in str(caught.value)
    needing("prompt", field).require_columns(Row(0, "x", images=("a.png",), videos=("v.mp4",)))


def test_a_clip_is_scored_as_its_frames() -> None:
    frames = pictures(3)
    assert kind_of(Clip(frames, 8.0)) == "video" and convert(Clip(frames, 8.0), None) == frames
    assert convert(Clip(frames, 8.0), torch.device("cpu")).shape == (3, 3, frames[0].height, frames[0].width)
    with pytest.raises(ValueError, match="reward 'it' scores image, and the model makes videos"):
        scores(rewards("shapes"), [Clip(frames, 8.0)], objects=[])


def test_an_image_reward_refuses_videos() -> None:
    with pytest.raises(ValueError, match="reward 'it' scores image, and the model makes videos"):
        scores(rewards("shapes"), [pictures(3)], objects=[])


@pytest.mark.parametrize(("entry", "message"), [
    ({"reward_model": "PickScor"}, "no reward 'PickScor'. Did you mean 'PickScore'?"),
    ({"reward_model": "shapes", "extra_kwargs": {"stict": True}}, "reward 'reward' has no key 'stict'. Did you mean 'strict'?"),
    ({"reward_model": "collections.Counter"}, "reward 'reward': 'collections.Counter' is neither a PointwiseRewardModel nor"),
    ({"dtype": "float33"}, "no dtype 'float33'"),
    ({"batch_size": 0}, "batch_size is 0"),
])  # fmt: skip
def test_wrong_entries_say_what_is_wrong(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        load_rewards([RewardArguments(**entry)], None, Accelerator(cpu=True))
    assert message in str(caught.value)


def test_two_entries_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two rewards are named 'reward'"):
        load_rewards([RewardArguments(reward_model="shapes")] * 2, None, Accelerator(cpu=True))
