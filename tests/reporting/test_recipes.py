"""Recipes: what the files say, and a run's numbers beside them."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from flow_factory.algorithms import ALGORITHMS
from flow_factory.commands.evaluate import main
from flow_factory.reporting.bootstrap import Estimate
from flow_factory.reporting.judged import judged
from flow_factory.reporting.recipes import FOLDER, comparison, load_recipe, names, recipes_page, verdict
from flow_factory.utils.errors import UserError

ROOT = Path(__file__).parents[2]
PROTOCOL: dict[str, Any] = {
    "model": "/elsewhere/tiny-flux-shapes", "seeds": [6],
    "data": {"": {
        "prompts": load_recipe("nft").ours.protocol.prompts, "rows": 256, "steps": 8, "guidance_scale": 3.5, "height": 64, "width": 64,
    }},
}  # fmt: skip


@pytest.mark.parametrize("name", names())
def test_a_recipe_is_of_its_algorithm_and_names_what_is_there(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.algorithm == name and name in ALGORITHMS and recipe.examples
    for path in [*recipe.examples, *([recipe.ours.config] if recipe.ours else [])]:
        assert yaml.safe_load((ROOT / path).read_text())["train"].get("trainer_type", "grpo") == name, path
    if recipe.ours is not None:
        assert all(len(band.after) == len(recipe.ours.seeds) for band in recipe.ours.rewards.values())
    assert all(re.fullmatch(r"abstract|the authors' README|\[.+\]\(https://.+\)", number.source) for number in recipe.paper.numbers)
    claims = re.search(r"(?m)^  claims: \[(.*)\]$", (FOLDER / f"{name}.yaml").read_text())
    assert claims is None or "," not in claims[1] or claims[1] == ", ".join(f'"{claim}"' for claim in recipe.paper.claims), (
        "cut by its comma"
    )


def test_the_page_is_what_the_program_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--recipes"]) == 0
    assert (ROOT / "guidance" / "recipes.md").read_text() == capsys.readouterr().out == recipes_page() + "\n"


@pytest.mark.parametrize(("mean", "word"), [
    ((0.5, 0.4, 0.6), "within"), ((0.3, 0.2, 0.35), "below"), ((0.9, 0.8, 1.0), "above"),
    ((0.3, 0.2, 0.42), "below, interval reaches it"), ((0.9, 0.6, 1.0), "above, interval reaches it"), ((0.3, np.nan, np.nan), "below"),
])  # fmt: skip
def test_a_mean_is_within_our_runs_or_beside_them(mean: tuple[float, float, float], word: str) -> None:
    assert verdict(Estimate(*mean), (0.4, 0.7)) == word


def scores(share: float) -> np.ndarray:
    return (np.arange(256) < share * 256).astype(float).reshape(256, 1, 1)


def test_numbers_of_the_same_protocol_stand_beside_the_recipes() -> None:
    found = judged({("base", ""): scores(0.41), ("epoch_15", ""): scores(0.59)}, {"": ["strict"]}, ["base", "epoch_15"])
    text = comparison(load_recipe("nft"), found, PROTOCOL)
    assert "| GenEval score" in text and "recipe after (3 seeds)" in text and "do not compare" not in text
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| strict")]
    assert [cells[-2].strip() for cells in rows] == ["-", "within"] and rows[1][6].strip() == "0.574 to 0.613"


def test_another_protocol_is_said_and_nothing_is_within_it() -> None:
    found = judged({("a", ""): scores(0.59)}, {"": ["strict"]}, ["a"])
    other = {**PROTOCOL, "seeds": [0, 1], "model": "flux", "data": {"": {**PROTOCOL["data"][""], "steps": 4, "prompts": "0" * 64}}}
    text = comparison(load_recipe("nft"), found, other)
    assert [line.split("|")[-2].strip() for line in text.splitlines() if line.startswith("| strict")] == ["other protocol"]
    for line in ("steps: 4, and 8 in", "seeds: 0-1, and 6 in", "prompts: 000000000000, and 893399fcaa2c in", "model: flux, and assets"):
        assert f"- {line}" in text
    assert "There are no runs of ours" in comparison(load_recipe("awm"), found, PROTOCOL) or load_recipe("awm").ours is not None


def test_a_file_that_is_no_recipe_is_a_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no recipe 'grop'. Did you mean 'grpo'?"):
        load_recipe("grop")
    for text, line in (
        ("algorithm: nft\n", "mine.yaml: paper: Field required"),
        ("algorithm: nft\npaper: {title: a, arxiv: 25}\n", "mine.yaml: paper.arxiv: .*, got 25"),
        ("algorithm: nft\npaper: {title: a, arxiv: '1'}\nour: {}\n", "mine.yaml: our: "),
    ):
        Path("mine.yaml").write_text(text)
        with pytest.raises(UserError, match=line):
            load_recipe("mine.yaml")
    with pytest.raises(UserError, match="no such file"):
        load_recipe("absent.yaml")
