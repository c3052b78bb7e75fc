"""A row's content is what it says, wherever it stands and whatever its number."""

from dataclasses import replace

import pytest

from flow_factory.data.row_content import content_of
from flow_factory.types import Row

ROW = Row(
    3, "a red ball", None, {"answer": "yes", "target": "/a/t.png", "n": [1, None]}, images=("ds/images/a.png",), source="test.jsonl:4"
)


@pytest.mark.parametrize(
    "same",
    [
        {"id": 0, "source": "other.jsonl:1", "dataset": "b"},
        {"images": ("/moved/a.png",)},
        {"columns": {**ROW.columns, "target": "/b/t.png"}},
    ],
)
def test_the_number_and_the_folder_are_no_content(same: dict[str, object]) -> None:
    assert content_of(replace(ROW, **same)) == content_of(ROW)


@pytest.mark.parametrize(
    "other",
    [
        {"prompt": "a blue ball"}, {"negative_prompt": ""}, {"images": ("ds/images/b.png",)}, {"images": (), "videos": ROW.images},
        {"columns": {**ROW.columns, "answer": "no"}}, {"columns": {**ROW.columns, "target": "/a/u.png"}},
        {"image_inputs": {"mask_image": ("m.png",)}},
    ],
)  # fmt: skip
def test_all_that_a_model_or_a_reward_gets_is_content(other: dict[str, object]) -> None:
    assert content_of(replace(ROW, **other)) != content_of(ROW)
