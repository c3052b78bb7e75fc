"""`eval.max_rows`: the same rows at every evaluation, whoever draws them and however often a run starts; at the end, maybe all."""

import json
from pathlib import Path

import pytest

from flow_factory.config import ConfigError, load_config
from flow_factory.data.encoding_windows import evaluated, rows_evaluated, rows_tested
from flow_factory.data.order import some_rows
from flow_factory.reporting.metrics import read_metrics
from flow_factory.reporting.paired_gains import FILE, compare
from tests.tiny.run import TEST, logged, tiny, write_rows, write_run

TWO = ("eval.max_rows=2", "log.num_samples=3")


def test_a_subset_is_one_of_the_rows_ascending_and_belongs_to_the_seed() -> None:
    assert list(some_rows(4, None, 0)) == list(some_rows(4, 4, 0)) == list(some_rows(4, 10**9, 0)) == [0, 1, 2, 3]
    drawn = [tuple(some_rows(1000, 100, seed)) for seed in range(20)]
    assert all(list(rows) == sorted(set(rows)) and len(rows) == 100 and rows[-1] < 1000 for rows in drawn)
    assert len(set(drawn)) == 20, "another seed, other rows"
    counts = [sum(row // 100 == k for rows in drawn for row in rows) for k in range(10)]
    assert min(counts) > 150 and max(counts) < 250, "from everywhere in the file: 200 of each tenth are expected"
    assert set(some_rows(1000, 10, 3)) < set(some_rows(1000, 100, 3)), "fewer rows are some of the more"
    assert some_rows(10, 3, 42) == [0, 3, 6], "the same in every version: a run that goes on has the same rows"


def test_which_rows_are_evaluated_depends_on_the_evaluations_seed_and_on_nothing_else(tmp_path: Path) -> None:
    file = write_run(tmp_path)
    few = load_config(file, ["eval.max_rows=5"])
    chosen = rows_evaluated(few, 100)
    assert len(chosen) == 5 and rows_tested(few, 100) == evaluated(few, 100) == chosen
    for same in ("eval.group_size=3", "eval.per_device_batch_size=1", "eval.seed=42", "train.max_epochs=9", "eval.eval_freq=7"):
        assert rows_evaluated(load_config(file, ["eval.max_rows=5", same]), 100) == chosen, same
    assert rows_evaluated(load_config(file, ["eval.max_rows=5", "eval.seed=1"]), 100) != chosen
    full = load_config(file, ["eval.max_rows=5", "eval.full_at_end=true"])
    assert rows_evaluated(full, 100) == chosen and list(rows_tested(full, 100)) == list(evaluated(full, 100)) == list(range(100))
    assert not full.notices and not evaluated(load_config(file, ["eval.max_rows=5", "eval.eval_freq=0"]), 100)
    endless = load_config(file, ["eval.max_rows=5", "eval.full_at_end=true", "train.max_epochs=null"])
    assert rows_tested(endless, 100) == chosen and "eval.full_at_end has no effect" in "\n".join(endless.notices)
    assert "eval.full_at_end has no effect" in "\n".join(load_config(file, ["eval.full_at_end=true"]).notices)


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "true", "many"])
def test_a_number_of_rows_that_is_none_is_refused(value: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"eval\.max_rows"):
        load_config(write_run(tmp_path), [f"eval.max_rows={value}"])


@pytest.mark.slow
def test_only_the_chosen_rows_are_encoded_drawn_and_shown(tmp_path: Path) -> None:
    run = tiny(tmp_path, *TWO)
    assert run.evaluators
    chosen = list(run.evaluators[0].usual)
    there = [k for k in range(len(TEST)) if run.evaluators[0].conds.cache.has(run.evaluators[0].conds.rows[k])]  # type: ignore[attr-defined]
    assert there == chosen and len(chosen) == 2
    text = run()
    lines = [line for line in logged(run.folder) if "eval/rows" in line]
    assert [line["eval/rows"] for line in lines] == [2, 2, 2] and not any("eval_full/rows" in line for line in lines)
    kept = [json.loads(line) for line in (run.folder / FILE).read_text().splitlines()]
    assert [line["rows"] for line in kept] == [chosen] * 3
    assert f"evaluated on 2 of {len(TEST)} test rows" in text and "95 % interval" in text
    whole = tiny(tmp_path, "run_name=all", "log.num_samples=4")
    _, (all_, few) = whole(), (whole.evaluators[0].run()[1], run.evaluators[0].run()[1])  # type: ignore[union-attr]
    assert [s.prompt for s in few] == [TEST[k] for k in chosen] and len(all_) == 4
    first = read_metrics(whole.folder / "metrics.jsonl")[0], [json.loads(line) for line in (whole.folder / FILE).open()][0]
    assert [first[1]["scores"]["size"][k] for k in chosen] == kept[0]["scores"]["size"], "a row's noise is its own"
    assert first[0]["eval/rows"] == len(TEST)


@pytest.mark.slow
def test_the_evaluation_at_the_end_takes_all_rows_and_the_others_are_compared_with_the_same(tmp_path: Path) -> None:
    """Of a run that goes on after its first epoch, too."""
    keys = (*TWO, "eval.full_at_end=true", "log.save_model_only=false", "log.save_freq=1")
    run = tiny(tmp_path, *keys)
    text = run()
    lines = [line for line in logged(run.folder) if "eval/rows" in line]
    assert [line["eval/rows"] for line in lines] == [2, 2, 2]
    assert [line.get("eval_full/rows") for line in lines] == [None, None, len(TEST)]
    kept = [json.loads(line) for line in (run.folder / FILE).read_text().splitlines()]
    assert [len(line["rows"]) for line in kept] == [2, 2, len(TEST)]
    of_all = dict(zip(kept[2]["rows"], kept[2]["scores"]["size"], strict=True))
    assert lines[2]["eval_full/reward_size_mean"] == pytest.approx(sum(of_all.values()) / len(of_all))
    assert lines[2]["eval/reward_size_mean"] == pytest.approx(sum(of_all[k] for k in kept[0]["rows"]) / 2)
    low, high = compare(run.folder).intervals["reward_size_mean"]
    assert (low + high) / 2 == pytest.approx(lines[2]["eval/reward_size_mean"] - lines[0]["eval/reward_size_mean"])
    assert f"at the end, on all {len(TEST)} test rows: size {lines[2]['eval_full/reward_size_mean']:.4g}" in text
    assert (run.folder / "before_after.png").is_file()
    assert run.evaluators
    shown = run.evaluators[0].run(full=True)[1]
    assert [s.prompt for s in shown] == [TEST[k] for k in kept[0]["rows"]] and all(s.media for s in shown), "those of before"
    other = tiny(tmp_path, *keys, "run_name=other", "train.max_epochs=1")
    other()
    assert "minutes since the resume after epoch 1 on" in tiny(tmp_path, *keys, "run_name=other", "model.resume_path=auto")()
    again = [line for line in logged(other.folder) if "eval/rows" in line]
    assert again[-1] == lines[-1] and [line["eval/rows"] for line in again] == [2, 2, 2]


@pytest.mark.slow
def test_a_run_that_goes_on_with_more_rows_is_compared_on_those_of_before(tmp_path: Path) -> None:
    keys = ("log.save_model_only=false", "log.save_freq=1")
    run = tiny(tmp_path, *TWO, *keys, "train.max_epochs=1")
    run()
    text = tiny(tmp_path, *keys, "model.resume_path=auto")()
    kept = [json.loads(line) for line in (run.folder / FILE).read_text().splitlines()]
    first, last = (dict(zip(its["rows"], its["scores"]["size"], strict=True)) for its in (kept[0], kept[-1]))
    assert (len(first), len(last)) == (2, len(TEST))
    before, after = (sum(its[row] for row in first) / 2 for its in (first, last))
    assert "before and after are on 2 rows that both evaluated" in text
    cells = [cell.strip() for line in text.splitlines() if line.startswith("| reward size ") for cell in line.split("|")]
    assert cells[2:5] == [f"{before:.4g}", f"{after:.4g}", f"{after - before:+.3g}"]


@pytest.mark.slow
def test_rows_that_changed_between_two_starts_are_no_pairs(tmp_path: Path) -> None:
    """Reversed, no row has the noise of before; two that changed places leave the others. Nothing of before is overwritten."""
    keys = ("log.save_model_only=false", "log.save_freq=1", "log.num_samples=4")
    run = tiny(tmp_path, *keys, "train.max_epochs=1")
    run()
    before = {file.name: file.read_bytes() for file in (run.folder / "samples/before").iterdir()}
    write_rows(tmp_path / "data/test.jsonl", [{"prompt": prompt} for prompt in TEST[::-1]])
    text = tiny(tmp_path, *keys, "model.resume_path=auto", "train.max_epochs=2")()
    assert "- the first and the last evaluation have no rows in common (with the same settings), so no change is given\n" in text
    cells = next(line for line in text.splitlines() if line.startswith("| reward size ")).split("|")
    assert "95 %" not in text and (cells[2].strip(), cells[4].strip()) == ("-", "-")
    assert not (run.folder / "before_after.png").exists() and "before_after" not in text
    write_rows(tmp_path / "data/test.jsonl", [{"prompt": TEST[k]} for k in (1, 0, 2, 3)])
    text = tiny(tmp_path, *keys, "model.resume_path=auto", "train.max_epochs=3")()
    kept = [json.loads(line)["scores"]["size"] for line in (run.folder / FILE).read_text().splitlines()]
    change = sum(kept[-1][2:]) / 2 - sum(kept[0][2:]) / 2
    assert "before and after are on 2 rows that both evaluated" in text
    assert f"{change:+.3g}" in next(line for line in text.splitlines() if line.startswith("| reward size "))
    assert {file.name: file.read_bytes() for file in (run.folder / "samples/before").iterdir()} == before
    assert (run.folder / "before_after.png").is_file()
    text = tiny(tmp_path, *keys, "model.resume_path=auto", "train.max_epochs=4", "eval.seed=9")()
    assert "no rows in common (with the same settings)" in text and not (run.folder / "before_after.png").exists(), "other noise"
