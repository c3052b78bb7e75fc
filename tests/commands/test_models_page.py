"""The tables of the page on models have every model, every algorithm, and all of their examples."""

import re
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import pytest

from flow_factory.config.algorithms import TRAIN_CONFIGS
from flow_factory.models import MODELS
from flow_factory.models.base import ModelAdapter
from tests.commands.examples import ALGORITHMS, EXAMPLES, example
from tests.tiny.run import ROOT


class Family(NamedTuple):
    """A row of the table."""

    model_type: str
    checkpoints: str
    conditions: str
    examples: dict[str, list[Path]]
    """By finetune_type."""


def families() -> list[Family]:
    rows = table("model.model_type")
    return [Family(name.strip("`"), *words, {"lora": linked(lora), "full": linked(full)}) for name, *words, lora, full in rows]


def table(first: str) -> list[list[str]]:
    """The cells of the page's table whose first column is this key."""
    lines = (ROOT / "guidance" / "models.md").read_text().partition(f"\n| `{first}` |")[2].splitlines()[2:]
    return [line.strip("| ").split(" | ") for line in takewhile(lambda line: line.startswith("|"), lines)]


def linked(cell: str) -> list[Path]:
    return [ROOT / link.removeprefix("../") for link in re.findall(r"\((.*?)\)", cell)]


CONDITIONS = {
    ((0, 0), (0, 0)): "text", ((1, 1), (0, 0)): "text, 1 picture", ((1, 2), (0, 0)): "text, 1 or 2 pictures",
    ((0, 32), (0, 0)): "text, any number of pictures",
    ((0, 32), (0, 8)): "text, pictures, masks, videos", ((0, 10), (0, 0)): "text, up to 10 pictures",
    ((0, 0), (0, 1)): "text, up to 1 video", ((1, 32), (0, 0)): "text, pictures", ((0, 0), (1, 1)): "text, 1 video",
}  # fmt: skip
"""(pictures, videos), at least and at most."""


def shown_to(family: type[ModelAdapter]) -> str:
    return ", ".join([CONDITIONS[family.images, family.videos], *(f"`{name}`" for name in family.needs)])


@pytest.mark.slow
def test_the_page_has_every_model_what_it_is_shown_and_the_examples_that_train_it() -> None:
    """LoRA and full are ticked by the examples, and those are what `test_examples` trains."""
    rows = families()
    assert [row.model_type for row in rows] == list(MODELS)
    assert [row.conditions for row in rows] == [shown_to(MODELS[row.model_type]) for row in rows]
    places = {path: (row, kind) for row in rows for kind, paths in row.examples.items() for path in paths}
    assert sorted(places) == [path for path in EXAMPLES if example(path).train.trainer_type == "grpo"]
    for path, (row, kind) in places.items():
        assert (example(path).model.model_type, example(path).model.finetune_type) == (row.model_type, kind)
    checkpoints = {row.model_type: re.split(r", |such as ", row.checkpoints) for row in rows}
    for model in (example(path).model for path in EXAMPLES):
        assert model.model_name_or_path.partition("/")[2].removesuffix("-Diffusers") in checkpoints[model.model_type]


def test_the_page_has_every_algorithm_and_all_of_its_examples() -> None:
    rows = {name.strip("`"): {"lora": linked(lora), "full": linked(full)} for name, lora, full in table("train.trainer_type")}
    assert list(rows) == list(TRAIN_CONFIGS) == list(ALGORITHMS)
    assert rows.pop("grpo") == {"lora": [], "full": []}  # the table of models has them
    for name, places in rows.items():
        for kind, paths in places.items():
            assert paths == [
                path for path in EXAMPLES if (example(path).train.trainer_type, example(path).model.finetune_type) == (name, kind)
            ]
