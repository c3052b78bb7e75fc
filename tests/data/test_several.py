"""Several data sets: who has which groups of an epoch, what a YAML of them says, and how its entries are read."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml

from flow_factory.commands.data import main as show
from flow_factory.config import ConfigError, dump_config, load_config
from flow_factory.config.datasets import datasets_of
from flow_factory.data.columns import DataError
from flow_factory.data.encoding_windows import order_of
from flow_factory.data.order import Order
from flow_factory.data.several import Joined, Named, dataset_of, sizes_of
from flow_factory.runs.evaluation_plan import evaluation_lines
from flow_factory.runs.rows import read_tests, read_training
from flow_factory.types import Row
from tests.conftest import ROOT

MIXES = [((7, 5), (1, 2), 4), ((3, 40, 9), (5, 3, 1), 7), ((20, 20), (1, 100), 8), ((6, 6, 6, 6), (2, 3, 5, 7), 1), ((2, 9), (3, 1), 12)]


def mixed(sizes: Sequence[int], weights: Sequence[int], rows: int, seed: int = 3) -> Order:
    return Order(tuple(sizes), rows, seed, tuple(weights), tuple(f"set {k}" for k in range(len(sizes))))


def by_set(order: Order, epoch: int) -> list[list[int]]:
    """The rows of each data set in an epoch, numbered in it."""
    starts = [sum(order.sizes[:k]) for k in range(len(order.sizes))]
    rows = [group.row for group in order.epoch(epoch)]
    return [[row - start for row in rows if 0 <= row - start < size] for start, size in zip(starts, order.sizes, strict=True)]


@pytest.mark.parametrize(("sizes", "weights", "rows"), MIXES)
def test_after_any_number_of_epochs_each_data_set_has_had_its_share_to_less_than_a_group(
    sizes: Sequence[int], weights: Sequence[int], rows: int
) -> None:
    order, had = mixed(sizes, weights, rows), [0] * len(sizes)
    drawn, cycles = set[int](), [list[int]() for _ in sizes]
    for epoch in range(60):
        taken = by_set(order, epoch)
        had = [before + len(its) for before, its in zip(had, taken, strict=True)]
        assert sum(map(len, taken)) == rows
        for weight, many in zip(weights, had, strict=True):
            assert abs(Fraction(weight * rows * (epoch + 1), sum(weights)) - many) < 1
        for its, size, cycle in zip(taken, sizes, cycles, strict=True):
            assert len(set(its)) == min(len(its), size) or len(its) > size, "no row twice in an epoch"
            cycle += its
        drawn.update(group.row for group in order.epoch(epoch))
        assert order.drawn(epoch + 1) == drawn
    for cycle, size in zip(cycles, sizes, strict=True):
        for row in range(size):
            assert abs(cycle.count(row) - len(cycle) / size) < 2, "rows come up in turn"


def test_an_epoch_is_a_pure_function_whose_streams_do_not_depend_on_each_other() -> None:
    order, other = mixed((9, 12), (1, 1), 6), mixed((9, 30), (1, 1), 6)
    assert order.epoch(11) == mixed((9, 12), (1, 1), 6).epoch(11) != mixed((9, 12), (1, 1), 6, seed=4).epoch(11)
    assert [sorted(by_set(order, e)[0]) for e in range(9)] == [sorted(by_set(other, e)[0]) for e in range(9)]
    assert [s.row for s in mixed((50, 50), (1, 1), 8).epoch(0)] == [58, 18, 90, 43, 62, 93, 20, 27], "the same in every version"


def test_data_sets_are_dealt_in_a_random_order() -> None:
    order = mixed((50, 50), (1, 1), 16)
    firsts = {tuple(group.row < 50 for group in order.epoch(epoch)) for epoch in range(20)}
    assert len(firsts) == 20, "a process would have one data set alone, were they dealt in turn"


def test_rows_are_numbered_one_after_the_other_and_know_their_data_set() -> None:
    parts = [Named([Row(k, f"{name} {k}") for k in range(many)], name, first) for name, many, first in (("a", 2, 0), ("b", 3, 2))]
    rows = Joined(parts)
    assert [(row.id, row.dataset, row.prompt) for row in rows] == [
        (0, "a", "a 0"), (1, "a", "a 1"), (2, "b", "b 0"), (3, "b", "b 1"), (4, "b", "b 2"),
    ]  # fmt: skip
    assert [dataset_of(rows, k) for k in range(5)] == ["a", "a", "b", "b", "b"] and sizes_of(rows) == (2, 3) and rows[-1].prompt == "b 2"
    assert [row.id for row in rows[1:4]] == [1, 2, 3] and [row.prompt for row in parts[1][1:]] == ["b 1", "b 2"]
    assert sizes_of([1, 2]) == (2,) and dataset_of([Row(0, "a")], 0) == ""


# -- the YAML ---------------------------------------------------------------------------------------------------------------------

A: dict[str, Any] = {"name": "a", "dataset_dir": "dataset/shapes", "train": {"weight": 2}, "eval": {"num_inference_steps": 4}}
B: dict[str, Any] = {"name": "b", "dataset_dir": "dataset/pickscore", "train": {}, "eval": {"max_dataset_size": 3, "resolution": 32}}
SIZE = {"reward_model": "jpeg_compressibility", "name": "size"}
SHAPES = {"reward_model": "shapes", "applicable_datasets": "a", "weight": {"a": 2}}


def written(folder: Path, data: Any, rewards: Any = None, **train: Any) -> Path:
    tree = yaml.safe_load((ROOT / "examples" / "quickstart.yaml").read_text())
    del tree["eval_rewards"]
    tree |= {"data": data, "rewards": rewards or [SHAPES, SIZE], "train": tree["train"] | train}
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(tree, sort_keys=False))
    return file


def test_each_data_set_is_the_run_with_it_alone(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, {"datasets": [A, B], "cache_dir": "c"}))
    a, b = datasets_of(config)
    assert (a.name, a.key, a.weight, a.evaluated, a.most_tested) == ("a", "data.datasets.0", 2, True, None)
    assert (b.name, b.key, b.weight, b.evaluated, b.most_tested) == ("b", "data.datasets.1", 1, True, 3)
    assert a.config.data.image_dir == "dataset/shapes/images" and a.config.data.cache_dir == b.config.data.cache_dir == "c"
    assert (a.config.eval.num_inference_steps, a.config.eval.resolution) == (4, (64, 64))
    assert (b.config.eval.num_inference_steps, b.config.eval.resolution, b.config.eval.height) == (8, (32, 32), 32)
    assert a.config.eval.call == b.config.eval.call == {"max_sequence_length": 10}
    assert [(r.name, r.weight) for r in a.config.rewards] == [("shapes", 2.0), ("size", 1.0)]
    assert [(r.name, r.weight) for r in b.config.evaluated_by] == [("size", 1.0)]
    again = tmp_path / "again.yaml"
    again.write_text(dump_config(config))
    assert load_config(again) == config, "what is kept of a run begins it again"
    given = load_config(written(tmp_path, {"datasets": [A | {"train": {}}, B]}, trainer_type="dpo", offline=True, group_size=2,
                                per_device_batch_size=2, nft_beta=None))  # fmt: skip
    assert order_of(given, (4, 3)).sizes == (7,), "where rows bring what is learned from, each comes up once in a pass"


@pytest.mark.parametrize(
    ("data", "rewards", "said"),
    [
        ([A, B | {"name": "a"}], None, "data.datasets.1.name: 'a' is the name of data.datasets.0 too; write another"),
        ([A | {"train": None}, {"name": "b", "dataset_dir": "x"}], None, "data.datasets: none of them has train:"),
        ([], None, "data.datasets: wants a list of data sets, each with name: and dataset_dir:, got []"),
        (["a"], [SIZE], "data.datasets.0: wants a mapping of keys to values"),
        ([A | {"train": {"weight": 0}}], None, "data.datasets.0.train.weight: 0 trains on none of its rows; leave its train: out"),
        ([A | {"train": {"weight": 0.7}}], None, "data.datasets.0.train.weight: wants a whole number, such as 7 and 3 for 0.7 and 0.3"),
        ([{"dataset_dir": "x", "train": {}}], [SIZE], "data.datasets.0.name: is required"),
        ([A | {"name": "a/b"}], [SIZE], "data.datasets.0.name: \"a/b\" would cut the names of metrics in two"),
        ([A | {"train": {"wieght": 1}}], None, "data.datasets.0.train.wieght: unknown key. Did you mean 'weight'?"),
        ([A | {"nmae": 1}], None, "data.datasets.0.nmae: unknown key. Did you mean 'name'?"),
        ([A | {"eval": {"num_inference_step": 2}}], None, "eval.num_inference_step: unknown key. Did you mean 'num_inference_steps'?"),
        ([A | {"eval": {"eval_freq": 2}}], None, "data.datasets.0.eval.eval_freq: all data sets are evaluated at the same epochs"),
        ([A | {"eval": {"seed": -1}}], None, "data.datasets.0.eval.seed: must be greater than or equal to 0, got -1"),
        ([A, B], [SHAPES | {"applicable_datasets": ["aa"]}, SIZE], "rewards.0.applicable_datasets: no data set \"aa\". Did you mean 'a'?"),
        ([A, B], [SHAPES | {"applicable_datasets": []}, SIZE], "rewards.0.applicable_datasets: names no data set"),
        ([A, B], [SHAPES], "data.datasets.1: no reward with a weight other than 0 scores its samples"),
        ([A, B], [SIZE | {"weight": {"a": 1}}], "rewards.0.weight: has no number for 'b'; write one (0 is only watched)"),
        ([A, B], [SIZE | {"weight": {"a": 1, "b": "x"}}], "rewards.0.weight: b: wants a number, got \"x\""),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_list_is_said(tmp_path: Path, data: Any, rewards: Any, said: str) -> None:
    with pytest.raises(ConfigError, match="run.yaml:") as error:
        load_config(written(tmp_path, {"datasets": data}, rewards))
    assert said in str(error.value)


def test_one_form_or_the_other(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(written(tmp_path, {"dataset_dir": "x", "columns": {}, "datasets": [A, B]}))
    first, second = str(error.value).splitlines()
    assert (
        first.endswith("data.dataset_dir: datasets names folders too; keep one") and "data.columns: each of datasets has its own" in second
    )
    with pytest.raises(ConfigError, match='no data set "a". data.dataset_dir has no name: write data.datasets'):
        load_config(written(tmp_path, {"dataset_dir": "dataset/shapes"}))
    with pytest.raises(ConfigError, match="data.datasets.0.train.weight: 2: dpo learns from the rows themselves, each once in a pass"):
        load_config(written(tmp_path, {"datasets": [A, B]}, trainer_type="dpo", offline=True, group_size=2, per_device_batch_size=2,
                            nft_beta=None))  # fmt: skip


def test_all_evaluations_together_are_remarked_on_where_they_take_much(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, {"datasets": [A | {"eval": {}}, B | {"eval": {}}]}))
    first, second, note = evaluation_lines(config, {"a": 256, "b": 256})
    assert first.startswith("a: evaluation: all 256 test rows") and second.startswith("b: evaluation: all 256 test rows")
    most = int(note.partition("eval.max_rows: ")[2].partition(" ")[0])
    few, more = (load_config(written(tmp_path, {"datasets": [A | {"eval": {"max_rows": n}}, B | {"eval": {"max_rows": n}}]})) for n in
                 (most, most + 1))  # fmt: skip
    assert [len(evaluation_lines(c, {"a": 256, "b": 256})) for c in (few, more)] == [2, 3]


def test_a_look_at_a_runs_data_is_a_look_at_each_data_set_or_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, names = ROOT / "examples" / "grpo" / "lora" / "sd3_5_two_datasets.yaml", ("dataset/ocr", "dataset/pickscore")
    tree = yaml.safe_load(file.read_text())
    tree["model"]["model_name_or_path"], tree["model"]["model_type"] = str(ROOT / "assets" / "tiny-flux-shapes"), "flux1"
    for entry, name in zip(tree["data"]["datasets"], names, strict=True):
        entry["dataset_dir"] = str(ROOT / name)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tree))
    assert show(["show", str(tmp_path / "run.yaml")]) == 0
    assert [name in line for line in capsys.readouterr().out.splitlines() for name in names if ", split train" in line].count(True) == 2
    assert show(["show", str(tmp_path / "run.yaml"), "--dataset", "ocr"]) == 0
    said = capsys.readouterr().out
    assert "dataset/ocr, split train: 128 rows" in said and "pickscore" not in said
    assert show(["show", str(tmp_path / "run.yaml"), "--dataset", "ocrr"]) == 2
    assert "--dataset: no data set 'ocrr'; data.datasets has ocr, pickscore" in capsys.readouterr().err


def test_what_is_wrong_with_a_data_set_is_said_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (tmp_path / "empty").mkdir()
    for entry, said in (
        ({"dataset_dir": str(tmp_path / "empty")}, f"data.datasets.1: no train split in {tmp_path}/empty, which has nothing in it"),
        ({"dataset_dir": str(tmp_path / "gone")}, "data.datasets.1.dataset_dir names a folder with train.jsonl or .txt"),
        ({"train": {"split": "tain"}}, "data.datasets.1: no tain split in dataset/pickscore, which has test.txt, train.txt"),
        ({"eval": {"split": "tst"}}, "data.datasets.1: no tst split in dataset/pickscore, which has test.txt, train.txt"),
        (
            {"subset": "a"},
            "data.datasets.1.subset: dataset/pickscore is a data set of .jsonl or .txt, which has no subsets",
        ),
    ):
        config = load_config(written(tmp_path, {"datasets": [A, B | entry]}))
        with pytest.raises(DataError) as error:
            read_training(config, lambda dataset: ())
            read_tests(config, lambda dataset: ())
        assert said in str(error.value)
