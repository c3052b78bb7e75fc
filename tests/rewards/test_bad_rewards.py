"""A reward may do anything by mistake: it is one line that names the reward and its author's line, and nothing else is harmed."""

import os
import re
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from PIL import Image, ImageDraw

from flow_factory.hparams import RewardArguments
from flow_factory.rewards import PointwiseRewardModel
from flow_factory.rewards.answers import AnswerError, scores_of
from flow_factory.rewards.loading import construct
from flow_factory.rewards.scoring import load_rewards
from flow_factory.types import Row
from flow_factory.utils.errors import RewardError, RunError
from tests.bad_rewards import RAISED, REFUSED, TAKEN
from tests.rewards.reward_set import judged, pictures, scores


@pytest.mark.parametrize("name", TAKEN)
def test_numbers_are_taken_however_they_are_wrapped(name: str) -> None:
    returned, expected = TAKEN[name]
    got, _ = scores_of(returned, 2)
    assert got.dtype == torch.float32 and not got.requires_grad and got.nan_to_num(-1).tolist() == expected


def test_one_sample_may_have_one_number() -> None:
    for returned in (torch.tensor(0.5), torch.tensor([0.5]), torch.tensor([[0.5]]), [0.5]):
        assert scores_of(returned, 1)[0].tolist() == [0.5]


def test_whatever_is_no_number_a_sample_is_refused_in_one_line() -> None:
    for name, (message, returned) in REFUSED.items():
        with pytest.raises(AnswerError) as caught:
            scores_of(returned, 2)
        assert re.match(message, str(caught.value).removeprefix("returned a list whose ")), f"{name}: {caught.value}"
        assert "\n" not in str(caught.value), name


class Does(PointwiseRewardModel):
    """Does what the table says under the prompt."""

    required_fields = ("prompt",)

    def __call__(self, prompt: list[str]) -> Any:
        return RAISED[prompt[0]][1]()


def test_whatever_a_reward_raises_names_it_and_its_line() -> None:
    reward = judged(Does)
    for name, (message, _) in RAISED.items():
        with pytest.raises(RewardError) as caught:
            reward.score([Row(7, name)], [pictures(2)])
        said = str(caught.value)
        where = r".*bad_rewards.py:\d+, in \w+\)|.*bad_rewards.py:\d+, in <lambda>\)" if "returned" not in message else ".*"
        failed = "" if "returned" in message else "failed on 2 samples of row 7: "
        assert re.fullmatch(f"reward 'does' {failed}{message}({where})?.*", said) and "\n" not in said, f"{name}: {said}"
        assert failed == "" or "bad_rewards.py:" in said, said
    assert isinstance(caught.value, RunError), "exit code 1"


def test_an_interrupt_stays_one() -> None:
    RAISED["Ctrl-C"] = ("", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        judged(Does).score([Row(0, "Ctrl-C")], [pictures(2)])
    del RAISED["Ctrl-C"]


class Vandal(PointwiseRewardModel):
    """Changes in place all that it is given."""

    required_fields = ("prompt", "image", "tags", "condition_images")

    def __call__(self, prompt: list[str], image: list[Image.Image], tags: list, condition_images: list) -> list[float]:
        for picture in (*image, *(c for one in condition_images for c in one)):
            ImageDraw.Draw(picture).rectangle((0, 0, 9, 9), "red")
            picture.thumbnail((4, 4))
        for one in tags:
            one["deep"].append("x")
            one.clear()
        prompt.reverse()
        prompt.clear()
        image.clear()
        torch.set_grad_enabled(True)
        torch.set_default_dtype(torch.bfloat16)
        os.chdir("/")
        return [1.0, 1.0]


class Witness(PointwiseRewardModel):
    """Looks at what it is given."""

    required_fields = ("prompt", "image", "tags")
    seen: list[Any]

    def __call__(self, prompt: list[str], image: list[Image.Image], tags: list, condition_images: list) -> list[float]:
        seen = [prompt, [i.tobytes() for i in image], tags, [c.tobytes() for one in condition_images for c in one]]
        Witness.seen = [*getattr(Witness, "seen", []), repr(seen)]
        return [1.0, 1.0]


def test_a_reward_that_changes_what_it_is_given_changes_it_for_nobody(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), "blue").save(tmp_path / "c.png")
    row = Row(0, "x", columns={"tags": {"deep": ["a"]}}, images=(str(tmp_path / "c.png"),))
    media = pictures(2)
    before = [m.tobytes() for m in media]
    reward, here = judged(Witness, Vandal), Path.cwd()
    for _ in range(2):  # a later epoch too
        reward.score([row], [media])
    judged(Witness).score([row], [media])
    assert [m.tobytes() for m in media] == before and media[0].size == (48, 40)
    assert row.columns == {"tags": {"deep": ["a"]}} and len(set(Witness.seen)) == 1 and len(Witness.seen) == 3
    assert torch.is_grad_enabled() and torch.get_default_dtype() == torch.float32 and Path.cwd() == here


class Built(PointwiseRewardModel):
    def __init__(self, config: RewardArguments, accelerator: Accelerator):
        super().__init__(config, accelerator)
        RAISED[config.extra_kwargs["how"]][1]()

    def __call__(self, prompt: list[str]) -> list[float]:
        return []


def test_what_a_constructor_raises_names_the_reward_and_the_line() -> None:
    for how in ("KeyError", "sys.exit(0)", "StopIteration", "GeneratorExit", "a message that raises", "missing module"):
        with pytest.raises(RewardError) as caught:
            judged(Built, how=how)
        said = str(caught.value)
        assert said.startswith("reward 'built' cannot be constructed: ") and re.search(r"rewards.py:\d+, in ", said), said


TEMPLATE = """
from .abc import PointwiseRewardModel, RewardModelOutput
from ..hparams import *

class Mine(PointwiseRewardModel):
    def __init__(self, config: RewardArguments, accelerator):
        super().__init__(config, accelerator)
        self.model = torch.nn.Linear(1, 1) if "torch" in globals() else None

    def __call__(self, prompt, image=None, video=None, condition_images=None, condition_videos=None):
        return RewardModelOutput(rewards=[float(i.width) for i in image], extra_info={})
"""


def test_the_public_template_runs_where_its_readme_puts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import flow_factory.rewards as package

    (tmp_path / "my_reward_of_a_test.py").write_text(TEMPLATE)
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    config = RewardArguments(name="it", reward_model="flow_factory.rewards.my_reward_of_a_test.Mine")
    reward = load_rewards([config], None, Accelerator(cpu=True))[0]
    assert scores(reward, pictures(2)).tolist() == [48.0, 48.0]
    assert construct(config, Accelerator(cpu=True)).to("cpu").device == torch.device("cpu")


class Threads(PointwiseRewardModel):
    def __call__(self, image: list) -> list[float]:
        worker = threading.Thread(target=RAISED["ZeroDivisionError"][1])
        worker.start(), worker.join()
        return [self.died() for _ in image]

    def died(self) -> float:
        worker = threading.Thread(target=divide)
        worker.start(), worker.join()
        return 1.0


def divide() -> None:
    print(1 / 0)


def test_a_thread_that_dies_is_said_by_name(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    judged(Threads).score([Row(0, "x")], [pictures(1)])
    said = capsys.readouterr().err
    assert re.search(
        r"warning: reward 'threads': a thread that it started died: ZeroDivisionError: .*bad_rewards.py:\d+, in divide\)", said
    )
