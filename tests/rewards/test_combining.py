"""What becomes of several rewards' scores: transforms, a combination of one's own, and how alike two rewards rank."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import rankdata, spearmanr

from flow_factory.config import RunConfig, load_config
from flow_factory.config.base import ConfigError
from flow_factory.core.advantage import aggregation, group_advantage
from flow_factory.core.ranking import mean_ranks, spearman
from flow_factory.rewards.transform import transformed
from flow_factory.types import Metrics
from flow_factory.utils.errors import RewardError, UserError
from tests.tiny.run import TEST, tiny, write_run

NAN = torch.nan


def whole(**keys: Any) -> dict[str, Any]:
    return {"clip": None, "sigmoid": None, "rank": False, "scale": 1.0} | keys


def weakest(rewards: torch.Tensor, weights: torch.Tensor, names: tuple[str, ...]) -> torch.Tensor:
    return (rewards * weights).amin(-1)


def one_a_group(rewards: torch.Tensor, weights: torch.Tensor, names: tuple[str, ...]) -> Any:
    rewards.zero_()
    return rewards[:, 0, 0]


def broken(rewards: torch.Tensor, weights: torch.Tensor, names: tuple[str, ...]) -> Any:
    raise ValueError(f"of {names[0]}")


def test_each_reward_has_its_own_transform_and_missing_scores_stay_missing() -> None:
    scores = torch.tensor([[[0.1, 5.0, 3.0], [NAN, 7.0, 3.0], [0.9, 5.0, NAN]], [[0.5, 1.0, NAN], [-4.0, NAN, 2.0], [4.0, 2.0, NAN]]])
    found = transformed(
        scores.double(),
        [whole(clip=(0.0, 0.5), scale=2.0), whole(rank=True), whole(sigmoid={"centre": 2.0, "width": 0.5})],
    )
    up = 1 / (1 + np.exp(-2.0))
    wanted = [[[0.2, 0.25, up], [NAN, 1.0, up], [1.0, 0.25, NAN]], [[1.0, 0.0, NAN], [0.0, NAN, 0.5], [1.0, 1.0, NAN]]]
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=1e-6, atol=1e-9, equal_nan=True)
    assert torch.equal(transformed(scores, [None] * 3).nan_to_num(9), scores.nan_to_num(9))


def test_a_rank_is_a_half_where_nothing_is_told_apart() -> None:
    found = transformed(torch.tensor([[[2.0], [2.0], [2.0]], [[NAN], [1.0], [NAN]], [[NAN]] * 3]), [whole(rank=True)])[..., 0]
    assert found[0].tolist() == [0.5] * 3 and found[1, 1] == 0.5 and found.isnan().sum() == 5


@pytest.mark.parametrize("seed", range(8))
def test_ranks_and_their_correlation_are_scipys(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 6, 40).astype(float), rng.normal(size=40).round(1)
    assert mean_ranks(torch.tensor(a)).tolist() == (rankdata(a) - 1).tolist()
    gone = rng.random(40) < 0.2
    found = spearman(torch.tensor(np.where(gone, np.nan, a)), torch.tensor(b))
    assert found == pytest.approx(spearmanr(a[~gone], b[~gone]).statistic, abs=1e-12)


def test_no_correlation_where_there_is_none_to_tell() -> None:
    a = torch.tensor([1.0, 2.0, NAN])
    assert spearman(a, torch.tensor([3.0, 3.0, 4.0])) is None and spearman(a, torch.tensor([3.0, NAN, 4.0])) is None
    assert spearman(a, torch.tensor([3.0, 1.0, 4.0])) == pytest.approx(-1.0)


def test_a_combination_of_ones_own_is_as_one_reward() -> None:
    rewards, weights = torch.randn(5, 4, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64), torch.tensor([1.0, 2.0])
    rewards[0, 1, 0] = NAN
    before = rewards.clone()

    def of(name: str) -> tuple[torch.Tensor, Metrics]:
        return aggregation(f"{__name__}.{name}", ("a", "b"))(rewards, weights, True)

    advantage, metrics = of("weakest")
    assert torch.equal(advantage, group_advantage((before * weights).amin(-1, keepdim=True), torch.ones(1), True)[0])
    assert metrics["missing_scores"] == 1 and metrics["unscored_samples"] == 1 and advantage[0, 1] == 0
    with pytest.raises(RewardError, match=r"one_a_group returned a tensor of shape \(5,\); it must return a tensor \(5, 4\)"):
        of("one_a_group")
    assert torch.equal(rewards.nan_to_num(9), before.nan_to_num(9)), "it gets copies"
    with pytest.raises(RewardError, match=r"train.advantage_aggregation: \S+broken failed: ValueError: of a \(\S+test_combining.py:\d+"):
        of("broken")
    with pytest.raises(UserError, match="is not a function"):
        aggregation(f"{__name__}:TEST", ())


def config(folder: Path, *overrides: str) -> RunConfig:
    return load_config(folder / "tiny.yaml", overrides)


def test_wrong_transforms_and_combinations_are_said_before_anything_is_loaded(tmp_path: Path) -> None:
    write_run(tmp_path)
    for override, said in {
        "rewards.transform={clip: [1, 0]}": r"wants \[low, high\] with low < high, got \[1, 0\]",
        "rewards.transform={rank: true, sigmoid: {}}": "ranks are the same with and without sigmoid",
        "rewards.transform={scale: 0.0}": "write weight: 0",
        "rewards.transform={sigmoid: {width: 0.0}}": "width",
        "rewards.transform={scal: 2.0}": "rewards.transform.scal: unknown key. Did you mean 'scale'",
        "train.advantage_aggregation=gdp": "Did you mean 'gdpo'",
        "train.advantage_aggregation=tests.tiny.rewards.brightnes": "has no function 'brightnes'. Did you mean 'brightness'",
    }.items():
        with pytest.raises(ConfigError, match=said):
            config(tmp_path, override)
    assert config(tmp_path, "rewards.transform={clip: [0, 1]}").rewards[0].transform is not None


def test_a_run_logs_scores_as_they_are_and_how_alike_they_rank(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = write_run(tmp_path).read_text().partition("rewards:")[0]
    entries = ("{reward_model: jpeg_compressibility, name: size, transform: {rank: true, scale: 3.0}}",
               "{reward_model: jpeg_incompressibility, name: other}")  # fmt: skip
    (tmp_path / "tiny.yaml").write_text(f"{text}rewards:\n" + "".join(f"- {entry}\n" for entry in entries))
    run = tiny(tmp_path, f"train.advantage_aggregation={__name__}.weakest", "train.gradient_step_per_epoch=1")
    with caplog.at_level(logging.WARNING):
        metrics = run.trainer.epoch()
    assert metrics["train/reward_size_mean"] == pytest.approx(-metrics["train/reward_other_mean"])
    assert metrics["train/transformed_size_mean"] == pytest.approx(1.5), "the mean rank is 1/2"
    assert "train/transformed_other_mean" not in metrics
    evaluated = run.evaluators[0].run()[0]  # type: ignore[union-attr]
    assert evaluated["eval/correlation/size/other"] == pytest.approx(-1.0) and evaluated["eval/rows"] == len(TEST)
