"""Groupwise rewards are evaluated on groups, each sample with a fixed noise of its own."""

from pathlib import Path

import pytest

from flow_factory.rewards import GroupwiseRewardModel, PointwiseRewardModel
from tests.tiny.run import tiny


class Spread(GroupwiseRewardModel):
    """How many different pictures the group has."""

    def __call__(self, image: list) -> list[float]:
        return [float(len({i.tobytes() for i in image}))] * len(image)


class First(PointwiseRewardModel):
    def __call__(self, image: list) -> list[float]:
        return [float(i.getpixel((0, 0))[0]) for i in image]


BOTH = f"rewards=[{{reward_model: {__name__}.Spread, name: spread}}, {{reward_model: {__name__}.First, name: first, batch_size: 3}}]"


def test_a_groupwise_reward_sees_groups_of_an_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = tiny(tmp_path, BOTH, "run_name=one")
    assert "note: eval.group_size: 1 leaves spread out of the evaluation" in capsys.readouterr().err
    metrics, samples = one.evaluators[0].run()
    assert "eval/reward_first_mean" in metrics and not any("spread" in key for key in metrics) and len(samples) == 4
    several = tiny(tmp_path, BOTH, "run_name=three", "eval.group_size=3")
    assert "leaves" not in capsys.readouterr().err
    (again, same), (_, twice) = several.evaluators[0].run(), several.evaluators[0].run()
    assert again["eval/reward_spread_mean"] == 3.0, "each member has a noise of its own"
    assert [s.media.tobytes() for s in same] == [s.media.tobytes() for s in twice] == [s.media.tobytes() for s in samples]
    assert [s.rewards["first"] for s in same] == [s.rewards["first"] for s in samples] and len(same) == 4


def test_an_evaluation_without_rewards_still_draws(tmp_path: Path) -> None:
    run = tiny(tmp_path, f"rewards={{reward_model: {__name__}.Spread}}", "train.max_epochs=1")
    assert "before_after.png" in run()
    assert (run.folder / "before_after.png").is_file()
