"""The tables of `ff-eval`."""

import csv
import json
from pathlib import Path

import numpy as np

from flow_factory.reporting.judged import judged, ranges, write_results

PROTOCOL = {
    "model": "tiny", "mixed_precision": "no", "device": "cpu", "seeds": [0, 1], "versions": {"torch": "2"},
    "data": {"": {
        "rows": 3, "prompts": "abcdef0123456789", "steps": 8, "guidance_scale": 3.5, "height": 32, "width": 64, "call": {"max": 10},
    }},
}  # fmt: skip
BEFORE = np.array([[[0.0, 1.0], [0.0, 2.0]], [[1.0, 3.0], [0.0, 4.0]], [[0.0, 5.0], [np.nan, 6.0]]])
AFTER = np.array([[[1.0, 1.0], [0.0, 1.0]], [[1.0, 3.0], [0.0, 4.0]], [[1.0, 5.0], [1.0, 6.0]]])


def write(folder: Path) -> str:
    found = judged({("base", ""): BEFORE, ("trained", ""): AFTER}, {"": ["strict", "size"]}, ["base", "trained"])
    return write_results(folder, found, PROTOCOL, {"base": None, "trained": "save/run"})


def test_means_differences_and_shares_are_over_the_pairs() -> None:
    base, trained, *_ = judged({("base", ""): BEFORE, ("trained", ""): AFTER}, {"": ["strict", "size"]}, ["base", "trained"])
    assert (base.mean.mean, base.pairs, base.missing, base.against) == (0.2, 6, 1, None)
    assert trained.mean.mean == 4 / 6 and trained.against is not None
    its = trained.against
    assert its.weights == "base" and its.difference.mean == 2 / 5, "of the five pairs that have both scores"
    assert (its.better, its.equal, its.worse, its.win_rate.mean) == (0.4, 0.6, 0.0, 0.7)


def test_the_files_agree_and_each_number_stands_beside_its_protocol(tmp_path: Path) -> None:
    text = write(tmp_path)
    assert (tmp_path / "results.md").read_text() == text
    line = "3 prompts (sha256 abcdef012345) x seeds 0-1 = 6 pairs; 8 steps, guidance 3.5, 64 x 32 px, max 10; tiny (no, cpu); torch 2"
    assert f"Protocol: {line}." in text and "Missing scores: strict of base: 1 of 6." in text and "The difference is to base." in text
    whole = json.loads((tmp_path / "results.json").read_text())
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert whole["protocol"] == PROTOCOL and len(whole["results"]) == len(rows) == 4
    for one, row in zip(whole["results"], rows, strict=True):
        assert one["protocol"] == row["protocol"] == line
        assert float(row["mean"]) == one["mean"]["mean"] and (row["steps"], row["seeds"], row["prompts"]) == (
            "8",
            "0-1",
            "abcdef0123456789",
        )
        assert (row["against"], row["difference"] == "") == (("base", False) if one["against"] else ("", True))


def test_weights_alone_have_no_columns_of_differences(tmp_path: Path) -> None:
    found = judged({("base", ""): BEFORE}, {"": ["strict", "size"]}, ["base"])
    text = write_results(tmp_path, found, PROTOCOL, {})
    assert "difference" not in text.split("\n\n", 2)[2] and "| strict |" in text


def test_seeds_are_written_as_they_are_given() -> None:
    assert [ranges(numbers) for numbers in ([3], [0, 1, 2], [1, 5, 9, 10, 11])] == ["3", "0-2", "1,5,9-11"]
