"""The suite itself: where its tests run, which of them, and that none of them is left out in the gate."""

import importlib.util
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from huggingface_hub import constants

from flow_factory.reporting.trackers import TRACKERS
from tests.conftest import ROOT, for_gpu, pytest_collection_modifyitems
from tests.turns import IN_TURN, SHARES, THINNED, TURNS, in_share, of_other_days

PAGES = [ROOT / "README.md", *(ROOT / "guidance").glob("*.md")]


def test_a_test_runs_in_an_empty_folder_whose_modules_come_before_those_of_the_root(tmp_path: Path) -> None:
    assert Path.cwd() == tmp_path and not list(tmp_path.iterdir())
    (tmp_path / "benchmarks.py").write_text("HERE = True")  # the root has a package of this name
    sys.modules.pop("benchmarks", None)
    assert importlib.import_module("benchmarks").HERE


def test_no_test_asks_the_hub_and_only_those_on_a_gpu_see_one() -> None:
    assert constants.HF_HUB_OFFLINE and os.environ["HF_HUB_OFFLINE"] == "1", "whatever the shell says"
    assert [for_gpu(e) for e in ("gpu", "gpu and not slow", "not gpu", "slow or exhaustive", "")] == [True, True, False, False, False]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_what_a_test_has_imported_from_its_folder_is_gone_after_it() -> None:
    assert not hasattr(sys.modules.get("benchmarks"), "HERE")


def test_files_that_the_pages_tell_people_to_write_in_the_root_are_no_part_of_it() -> None:
    names = {f"/{name}.py" for page in PAGES for name in re.findall(r"\b(my_\w+)\.(?:py|[A-Z])", page.read_text())}
    assert {"/my_algorithms.py", "/my_models.py", "/my_rewards.py"} <= names <= set((ROOT / ".gitignore").read_text().split())


def test_every_exhaustive_test_comes_up_within_some_days_and_a_share_is_always_the_same() -> None:
    tests = [f"tests/test_grid.py::test_cell[{k}]" for k in range(200)]
    shares = [[test for test in tests if in_share(test, str(seed))] for seed in range(739000, 739000 + SHARES)]
    assert sorted(sum(shares, [])) == sorted(tests) and max(map(len, shares)) < len(tests) / SHARES * 2
    assert shares[0] == [test for test in tests if in_share(test, str(739000 + SHARES))]
    assert [test for test in tests if in_share(test, "all")] == tests


def test_only_exhaustive_tests_are_left_to_other_days() -> None:
    items: list[Any] = [
        SimpleNamespace(nodeid=f"{mark}{k}", get_closest_marker=mark.__eq__) for mark in ("slow", "exhaustive") for k in range(200)
    ]
    out: list[Any] = []
    config: Any = SimpleNamespace(getoption=lambda name: "3", hook=SimpleNamespace(pytest_deselected=lambda items: out.extend(items)))
    pytest_collection_modifyitems(config, items)
    left = {item.nodeid for item in items}
    assert {f"slow{k}" for k in range(200)} < left and len(items) + len(out) == 400
    assert {item.nodeid for item in out} == {t for t in (f"exhaustive{k}" for k in range(200)) if not in_share(t, "3")}


def test_the_dearest_slow_tests_come_up_in_turn_and_there_are_tests_of_these_names() -> None:
    items: list[Any] = [SimpleNamespace(nodeid=f"tests/test_a.py::{name}", get_closest_marker=lambda mark: None) for name in IN_TURN]
    runs = [[item for item in items if item not in of_other_days(items, str(day))] for day in range(739000, 739000 + TURNS)]
    assert sorted(item.nodeid for day in runs for item in day) == sorted(item.nodeid for item in items)
    assert max(map(len, runs)) - min(map(len, runs)) <= 1 and not of_other_days(items, "all")
    sources = "".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    assert all(f"def {name}(" in sources for name in IN_TURN)


def fast_cells(name: str, cells: int, share: str) -> set[int]:
    """The cells of a grid that `THINNED` leaves to the fast part."""
    exhaustive: set[int] = set()
    items: list[Any] = [
        SimpleNamespace(nodeid=f"a.py::{name}[{k}]", get_closest_marker=lambda mark: None, add_marker=lambda mark, k=k: exhaustive.add(k))
        for k in range(cells)
    ]
    of_other_days(items, share)
    return set(range(cells)) - exhaustive


def test_every_cell_of_a_thinned_grid_is_a_fast_test_within_some_days() -> None:
    for name, every in THINNED.items():
        days = [fast_cells(name, 3 * every, str(day)) for day in range(739000, 739000 + every)]
        assert all(len(day) == 3 for day in days) and set.union(*days) == set(range(3 * every))


def test_nothing_that_tests_need_is_missing_and_so_none_is_skipped() -> None:
    """Each tracker and each optional package that has tests comes with the extra `test`, and `all` has every tracker."""
    extras = dict(re.findall(r"^(test|all) = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    pins = (ROOT / "constraints.txt").read_text()
    for name in (*TRACKERS.table, "datasets", "deepspeed", "torchao"):
        assert f'"{name}>=' in extras["test"] and f"\n{name}==" in pins and importlib.util.find_spec(name), name
    assert all(re.search(rf"\b{name}\b", extras["all"]) for name in TRACKERS.table)
