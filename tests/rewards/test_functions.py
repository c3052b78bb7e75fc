"""A plain function as a reward, by its dotted path."""

import re
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from flow_factory.config import ConfigError, load_config
from flow_factory.core.ema import decay_after
from flow_factory.hparams import RewardArguments
from flow_factory.rewards import REWARDS, PointwiseRewardModel, groupwise
from flow_factory.rewards.loading import compares, require_rewards
from flow_factory.rewards.scoring import RewardSet, load_rewards
from flow_factory.types import Clip, Row
from flow_factory.utils.errors import RewardError, UserError
from flow_factory.utils.registry import UnknownName
from tests.tiny.run import write_run

GIVEN: list[dict[str, Any]] = []
"""What `all_of_it` was called with."""


def widths(images: list, gain: float = 1.0) -> list[float]:
    return [gain * image.width for image in images]


def answers(prompts: list, answer: list) -> list[float | None]:
    return [None if one is None else float(prompt == one) for prompt, one in zip(prompts, answer, strict=True)]


@groupwise
def places(image: list, **columns: Any) -> torch.Tensor:
    GIVEN.append(columns)
    return torch.arange(len(image)) / len(image)


def all_of_it(prompts: list, *rest: Any, **columns: Any) -> list[float]:
    assert not rest
    GIVEN.append(columns)
    return [0.0] * len(prompts)


def first(prompts: list, /) -> list[float]:
    return [0.0] * len(prompts)


def both(images: list, image: list) -> list[float]:
    return []


async def later(images: list) -> list[float]:
    return []


def raises(images: list) -> list[float]:
    raise ValueError("no such picture")


def misuses(images: list) -> list[float]:
    return [float(decay_after(None, 1))]  # type: ignore[arg-type]


class Sized:
    """An object that can be called is a function too."""

    def __call__(self, videos: list, images: Any = None) -> list[int]:
        return [len(frames) for frames in videos]


sized = Sized()
number = 7


def entry(function: str, **keys: Any) -> RewardArguments:
    return RewardArguments(name=function, reward_model=f"{__name__}.{function}", device="cpu", extra_kwargs=keys, batch_size=2)


def loaded(*entries: RewardArguments) -> RewardSet:
    return load_rewards(entries, (), Accelerator(cpu=True))[0]


def pictures(*widths: int) -> list[Image.Image]:
    return [Image.new("RGB", (width, 4)) for width in widths]


def test_a_function_gets_lists_by_its_names_and_keys_of_its_entry() -> None:
    rows, media = [Row(0, "a", columns={"answer": "a"}), Row(1, "b", columns={"answer": "c"})], [pictures(1, 2), pictures(3, 4)]
    found = torch.stack(loaded(entry("widths", gain=2.0), entry("answers"), entry("places")).score(rows, media))
    assert found.flatten(0, 1).T.tolist() == [[2, 4, 6, 8], [1, 1, 0, 0], [0, 0.5, 0, 0.5]]
    assert GIVEN.pop() == {"answer": ["c", "c"], "prompts": ["b", "b"]}


def test_what_a_function_does_not_name_comes_by_the_names_of_many() -> None:
    GIVEN.clear()
    loaded(entry("all_of_it")).score([Row(0, "a", "not b", columns={"tag": 3})], [pictures(1, 2)])
    (columns,) = GIVEN
    assert {name: len(values) for name, values in columns.items()} == {"images": 2, "negative_prompts": 2, "tag": 2}
    assert loaded(entry("sized")).score([Row(0, "a")], [[Clip(pictures(1, 1, 1), 8.0)]])[0].tolist() == [[3]]


def test_a_function_says_what_it_needs_before_anything_is_loaded() -> None:
    with pytest.raises(UserError, match="reward 'answers' needs the column 'answer', and row 0"):
        loaded(entry("answers")).check_columns([Row(0, "a")])
    loaded(entry("answers", answer=["a"])).check_columns([Row(0, "a")])
    with pytest.raises(UserError, match="reward 'widths' scores image, and the model makes videos"):
        require_rewards([entry("widths")], "video", False)
    assert compares(entry("places")) and not compares(entry("widths"))
    with pytest.raises(UserError, match=r"reward 'widths' has no key 'gian'. Did you mean 'gain'\? Beside the common ones it takes gain"):
        loaded(entry("widths", gian=2.0))


@pytest.mark.parametrize(("name", "message"), [
    ("first", "has the positional-only argument 'prompts'; rewards are called with keyword arguments"),
    ("both", "names both 'image' and 'images', which are the same; write one of them"),
    ("later", "is async; write a plain def, and async_reward: true"),
    ("number", "is neither a PointwiseRewardModel nor a GroupwiseRewardModel, nor a function"),
])  # fmt: skip
def test_what_cannot_be_called_by_name_is_refused(name: str, message: str) -> None:
    with pytest.raises(UserError, match=f"reward {name!r}: '{__name__}.{name}' {message}"):
        loaded(entry(name))


def test_what_a_function_raises_names_its_line_and_a_slip_is_found_before_it_is_imported(tmp_path: Any) -> None:
    with pytest.raises(RewardError, match=r"reward 'raises' failed on 1 sample of row 5: ValueError: no such picture \(\S+.py:\d+"):
        loaded(entry("raises")).score([Row(5, "a")], [pictures(1)])
    with pytest.raises(RewardError, match=r"AttributeError: .* \(\S+/test_functions.py:\d+, in misuses\)"):
        loaded(entry("misuses")).score([Row(5, "a")], [pictures(1)])
    write_run(tmp_path)
    (tmp_path / "mine.py").write_text("def light(images):\n    return [0.0 for _ in images]\n")
    assert load_config("tiny.yaml", ["rewards.reward_model=mine.light"]).rewards[0].reward_model == "mine.light"
    with pytest.raises(ConfigError, match="mine.py has no class or function 'lihgt'. Did you mean 'light'"):
        load_config("tiny.yaml", ["rewards.reward_model=mine.lihgt"])


def test_public_names_that_are_not_here_say_why() -> None:
    for name, text in {"HPSv3++": "remote, or HPSv3 here", "DeQA": "no mPLUG-Owl2"}.items():
        with pytest.raises(UnknownName, match=f"no reward '{re.escape(name)}': .*{text}"):
            REWARDS.path(name)
    with pytest.raises(UnknownName, match="Did you mean"):
        REWARDS.path("HPSv4")


def test_a_class_stays_one() -> None:
    class Mine(PointwiseRewardModel):
        def __call__(self, image: list, **columns: Any) -> list[float]:  # type: ignore[override]
            return [1.0] * len(image)

    globals()["Mine"] = Mine
    assert loaded(entry("Mine")).score([Row(0, "a")], [pictures(1)])[0].tolist() == [[1]]
