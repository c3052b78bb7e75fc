"""The page of rewards runs: its rewards score, and its YAMLs do with tiny random weights and servers of this machine."""

import ast
import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from flow_factory.commands.reward import main as reward
from flow_factory.config.service import RewardsConfig, load_rewards_config
from flow_factory.hparams import RewardArguments
from flow_factory.rewards import REWARDS
from flow_factory.rewards.facts import FACTS
from flow_factory.rewards.loading import arguments
from flow_factory.rewards.scoring import load_rewards
from flow_factory.types import Row
from tests.rewards.reward_set import pictures
from tests.tiny.judge_server import judge
from tests.tiny.reward_server import service
from tests.tiny.run import ROOT

PAGE = (ROOT / "guidance" / "rewards.md").read_text()
ROWS = [Row(k, f'{said} "stop"') for k, said in enumerate(("a red circle", "two dogs"))]
LONGEST = 20
"""Lines of a reward of one's own."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


TEMPLATES = {text.partition("\n")[0].removeprefix("# "): text for text in blocks("yaml") if "\nuser:" in text}
"""A judge's questions, by the name of their file, which is their first line."""
YAMLS = [text for text in blocks("yaml") if not re.search(r"server:|remote|^user:", text, re.MULTILINE)]
SERVED = [text for text in blocks("yaml") if "server:" in text]
(CLIENT,) = (text for text in blocks("yaml") if "reward_model: remote" in text)


@pytest.fixture(autouse=True)
def _module(tmp_path: Path) -> None:
    (tmp_path / "my_rewards.py").write_text("\n\n".join(blocks("python")))
    for name, text in TEMPLATES.items():
        (tmp_path / name).write_text(text)


def scored(*entries: RewardArguments) -> Tensor:
    """(rows, samples, rewards)."""
    rewards = load_rewards(entries, (), Accelerator(cpu=True))[0]
    return torch.stack(rewards.score(ROWS, [pictures(3, seed) for seed in range(len(ROWS))]))


def own() -> dict[str, ast.FunctionDef | ast.ClassDef]:
    """The page's own rewards; a combination of scores is none."""
    nodes = [node for node in ast.parse("\n".join(blocks("python"))).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    return {node.name: node for node in nodes if node.name != "weakest"}


def test_each_reward_of_the_page_is_short_and_scores() -> None:
    entries = [RewardArguments(name=name, reward_model=f"my_rewards.{name}", device="cpu") for name in own()]
    assert [node.name for node in own().values() if (node.end_lineno or 0) - node.lineno >= LONGEST] == []
    found = dict(zip(own(), scored(*entries).unbind(-1), strict=True))
    assert list(found) == ["light", "wide", "rank", "Brightness", "Unlike"]
    assert torch.equal(found["light"], found["Brightness"]) and found["wide"].isnan().all()
    assert torch.equal(found["rank"].sort(1).values, torch.tensor([[0.0, 0.5, 1.0]] * 2))
    assert (found["Unlike"] > 0).all() and found["light"].std() > 0


def test_each_reward_that_comes_along_is_told_in_three_lines() -> None:
    """Each paragraph says what the reward measures, its scale, its licence, and how a model exploits it."""
    told = [part.split("\n") for part in PAGE.partition("\n## A judge\n")[0].split("\n\n") if part.startswith("`")]
    assert all(len(lines) <= 3 and re.search("[Ee]xploited by|[Cc]heated by", " ".join(lines)) for lines in told)
    names = {name for lines in told for name in re.findall(r"`(\w+)`", re.split(r"(?<!\d)[:.]", lines[0])[0])}
    assert names == set(FACTS) - {"remote", "remote_group", "PickScore_Rank"}


def with_tiny_weights(config: RewardsConfig, keys: Callable[[str], dict[str, Any]], address: str) -> Iterator[RewardArguments]:
    """The entries, whose weights are tiny and random, and whose judge is at an address; by name where two are alike."""
    for entry in arguments(config.rewards):
        own = {**entry.extra_kwargs, **keys(REWARDS.canonical(entry.reward_model))}
        if "api_base_url" in own:
            own["api_base_url"] = address
        elif "judges" in REWARDS.path(entry.reward_model):
            own |= keys("vlm")
        yield replace(entry, device=torch.device("cpu"), extra_kwargs=own)


def config_of(text: str) -> RewardsConfig:
    Path("rewards.yaml").write_text(text)
    return load_rewards_config("rewards.yaml")


@pytest.mark.exhaustive
@pytest.mark.parametrize("text", YAMLS, ids=range(len(YAMLS)))
def test_each_yaml_of_the_page_scores(text: str, keys: Callable[[str], dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flow_factory.rewards.judges.verdict.LEAST", 0.0)  # a random judge says A as seldom as any other word
    with judge() as (address, _):
        entries = list(with_tiny_weights(config_of(text), keys, address))
        found = scored(*entries)
    assert found.isfinite().all() and len(entries) == text.count("reward_model:")


def test_a_question_of_ones_own_scores_images_as_the_page_shows(capsys: pytest.CaptureFixture[str]) -> None:
    (command,) = (line for text in blocks("bash") for line in text.splitlines() if line.startswith("ff-reward score judge.yaml"))
    (text,) = (text for text in YAMLS if "light.yaml" in text)
    (line,) = re.findall(r"^light: .*$", PAGE, re.MULTILINE)
    Path("dataset").symlink_to(ROOT / "dataset")
    with judge() as (address, bodies):
        Path("judge.yaml").write_text(text.replace("http://localhost:8000/v1", address))
        assert reward(shlex.split(command)[1:]) == 0
    assert line in capsys.readouterr().out
    asked = str([body["messages"] for body in bodies])
    assert asked.count("careful photo editor") == 3 and asked.count("The boat glides") == 1


def test_each_server_of_the_page_answers_its_client(keys: Callable[[str], dict[str, Any]]) -> None:
    for text in SERVED:
        config = config_of(text)
        entries = list(with_tiny_weights(config, keys, ""))
        with ExitStack() as stack:
            own = {"max_queue": config.server.max_queue, "token": config.server.token}
            address, _ = stack.enter_context(service(*entries, **own))
            (client,) = arguments(config_of(CLIENT).rewards)
            assert client.extra_kwargs["token"] == config.server.token
            told = {**client.extra_kwargs, "server_url": address, "reward": entries[0].name}
            torch.testing.assert_close(scored(replace(client, extra_kwargs=told)), scored(entries[0]))
