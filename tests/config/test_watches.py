"""`monitor:` and `log.keep_best`: what cannot be is refused."""

from pathlib import Path

import pytest

from flow_factory.config import ConfigError, load_config
from tests.tiny.run import write_run

REFUSED = [
    ("[{metric: train/kl_div, above: 1, do: warn}]", "monitor.0.metric", "logged where train.kl_beta is above 0"),
    ("[{metric: train/loss}]", "monitor.0", "wants one of above, below, rises, falls, got none of them"),
    ("[{metric: train/loss, above: 1, falls: 2}]", "monitor.0", "got above and falls"),
    ("[{metric: train/loss, falls: -2}]", "monitor.0.falls", "wants a number above 0 in the metric's unit, or a share such as 20%, got -2"),
    ("[{metric: loss, above: 1}]", "monitor.0.metric", "begins with train/"),
    ("[{metric: eval/reward_sise_mean, falls: 1%}]", "monitor.0.metric", "no reward of rewards is named \"sise\"; Did you mean 'size'?"),
    ("[{metric: train/reward_saturation_mean, rises: 1}]", "monitor.0.metric", "add {reward_model: saturation, weight: 0} to it"),
    ("[{metric: train/loss, above: 1, do: back}]", "monitor.0.do", "set log.keep_best"),
    ("[{metric: train/loss, over: 1}]", "monitor.0.over", "unknown key"),
    ("[{metric: train/loss, above: 1, from_epoch: 2}]", "monitor.0.from_epoch", "2 is not before the run's end"),
    ("[{metric: train/loss, above: 1}, {metric: train/loss, above: 1}]", "monitor.1.metric", "keep one"),
    ("fast", "monitor", "wants a list of watches"),
]


@pytest.mark.parametrize(("text", "key", "said"), REFUSED)
def test_a_watch_that_cannot_be_is_refused(tmp_path: Path, text: str, key: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write_run(tmp_path), [f"monitor={text}"])
    assert f"{key}: " in str(caught.value) and said in str(caught.value)


@pytest.mark.parametrize(("best", "said"), [("train/loss", "wants a metric of an evaluation"), ("eval/reward_x_mean", 'is named "x"')])
def test_the_best_is_of_an_evaluation(tmp_path: Path, best: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write_run(tmp_path), [f"log.keep_best={best}"])
    assert "log.keep_best: " in str(caught.value) and said in str(caught.value)
