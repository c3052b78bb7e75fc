"""Each row's scores are kept, a change has an interval that is right, and the next step is the algorithm's own."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from flow_factory.config import load_config
from flow_factory.reporting.model_card import Published, model_card
from flow_factory.reporting.page.write import page_of
from flow_factory.reporting.paired_gains import FILE, compare, interval, keep_scores
from flow_factory.runs.provenance import provenance
from flow_factory.training.next_steps import next_steps, resume_command
from flow_factory.training.summary import took
from tests.tiny.run import ROOT, logged, tiny, write_run


def test_intervals_hold_the_true_change_as_often_as_they_say():
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        before = random.random(40)
        after = before + random.normal(0.2, 0.5, 40)
        low, high = interval(before.tolist(), after.tolist())
        hits += low < 0.2 < high
    assert 0.93 < hits / 2000 < 0.97


def evaluated(folder: Path, *evaluations: tuple[int, range, list[float]]) -> Path:
    """A run's folder with these evaluations: (epoch, rows, the score of each)."""
    folder.mkdir(exist_ok=True)
    with (folder / "metrics.jsonl").open("w") as file:
        for step, rows, scores in evaluations:
            mean = {"eval/rows": len(rows), "eval/reward_a_mean": float(np.mean(scores)), "eval/reward_mean": 1.0, "eval/loss": 1.0}
            file.write(json.dumps({"step": step, **mean}) + "\n")
            keep_scores(folder, step, rows, {"a": scores})
    return folder


def test_evaluations_of_other_rows_are_compared_on_those_that_both_took(tmp_path):
    """A run that went on with another `eval.max_rows`: in the summary, the card, the header of the weights and the page alike."""
    folder = evaluated(tmp_path / "run", (0, range(2), [0.0, 0.5]), (2, range(4), [0.5, 0.75, 0.0, 0.0]))
    found = compare(folder)
    assert (found.before["reward_a_mean"], found.after["reward_a_mean"]) == (0.25, 0.625)
    low, high = found.intervals["reward_a_mean"]
    assert (low + high) / 2 == pytest.approx(0.375) and found.common == {"": 2} and found.after["rows"] == 2
    assert "loss" not in found.before and "reward_mean" not in found.before, "the rows of these are not kept"
    assert found.note == "before and after are on 2 rows that both evaluated"
    page = page_of(folder)
    assert found.note in page and ">0.25<" in page and ">0.625<" in page
    (folder / "config.yaml").write_text("")
    config = load_config(write_run(tmp_path))
    card = model_card(Published(config, tmp_path, folder, "epoch_2", "me/it"))
    assert "Protocol: 2 test prompts" in card and "Before and after are on 2 rows" in card and "0.25 | 0.625 |" in " ".join(card.split())
    assert json.loads(provenance(config, folder, "epoch_2")["flow_factory"])["evaluation"]["reward_a_mean"] == [0.25, 0.625]
    (folder / FILE).unlink()
    found = compare(folder)
    assert (found.before, found.after["reward_a_mean"]) == ({}, 0.3125) and "nothing is known of before" in found.note


def test_evaluations_of_the_same_rows_are_compared_as_they_are(tmp_path):
    """An evaluation of all rows at the end has its scores kept of more rows than its usual metrics are of."""
    folder = evaluated(tmp_path / "run", (0, range(2), [0.0, 0.5]), (2, range(2), [0.5, 0.75]))
    keep_scores(folder, 2, range(4), {"a": [0.5, 0.75, 0.0, 0.0]})
    found = compare(folder)
    assert (found.before["reward_a_mean"], found.after["reward_a_mean"]) == (0.25, 0.625) and found.before["loss"] == 1
    assert not found.note and compare(folder, until=1).before == {}


@pytest.mark.parametrize(
    ("first", "last", "before", "note"),
    [
        ("abc", "abc", {"reward_a_mean": 1.0}, ""),
        ("abc", "cba", {"reward_a_mean": 2.0}, "before and after are on 1 rows that both evaluated"),
        ("abc", "bca", {}, "the first and the last evaluation have no rows in common (with the same settings), so no change is given"),
        ("", "bca", {"reward_a_mean": 1.0}, ""),
    ],
)
def test_rows_of_one_number_with_other_contents_are_no_pair(tmp_path, first, last, before, note):
    """Nor are those of one content with other numbers: their noise is another. Files of earlier versions do not say it: "" here."""
    lines = [{"step": step, "eval/rows": 3, "eval/reward_a_mean": mean} for step, mean in ((0, 1.0), (2, 4.0))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    keep_scores(tmp_path, 0, range(3), {"a": [0.0, 2.0, 1.0]}, contents=first)
    keep_scores(tmp_path, 2, range(3), {"a": [3.0, 4.0, 5.0]}, contents=last)
    found = compare(tmp_path)
    known = {k: v for k, v in found.before.items() if k != "rows"}
    assert (known, found.note) == (before, note) and bool(found.intervals) == (not note)
    assert note in page_of(tmp_path)


@pytest.mark.parametrize(("last", "before"), [("ab", {"rows": 1, "loss": 1.0}), ("ba", {})])
def test_a_held_out_loss_of_other_rows_is_not_compared(tmp_path, last, before):
    """Without rewards the metric `rows` is of those that are shown."""
    lines = [{"step": step, "eval/rows": 1, "eval/loss": loss} for step, loss in ((0, 1.0), (2, 0.5))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for step, contents in ((0, "ab"), (2, last)):
        keep_scores(tmp_path, step, range(2), {}, contents=contents)
    found = compare(tmp_path)
    assert found.before == before and found.after["loss"] == 0.5 and bool(found.note) == (not before)


def test_the_time_of_a_resumed_run_is_said_to_be_that_since_the_resume():
    assert took(90, None) == "1.5 minutes" and took(90, 3) == "1.5 minutes since the resume after epoch 3"


def test_pairs_without_both_scores_are_left_out():
    assert interval([0.0, None, 1.0], [1.0, 1.0, 2.0]) == (1.0, 1.0)
    assert interval([0.0, None], [None, 1.0]) is None


def test_the_first_and_the_last_evaluation_of_the_metrics_are_compared(tmp_path):
    """Those of epochs that the metrics no longer have are of a branch that was left."""
    assert_lines = [{"step": 0, "eval/reward_a_mean": 0.0}, {"step": 1, "train/loss": 0.0}, {"step": 2, "eval/reward_a_mean": 0.5}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in assert_lines))
    assert compare(tmp_path).intervals == {}
    for step, scores in ((0, [0.0, 0.0, math.nan]), (2, [9.0, 9.0, 9.0]), (9, [5.0, 5.0, 5.0]), (2, [0.0, 1.0, 1.0])):
        keep_scores(tmp_path, step, range(len(scores)), {"a": scores})
    low, high = compare(tmp_path).intervals["reward_a_mean"]
    assert (low + high) / 2 == pytest.approx(0.5) and low < 0 < high


def test_a_run_keeps_every_rows_scores_and_its_summary_has_the_interval(tmp_path):
    text = tiny(tmp_path, "log.num_samples=1")()
    folder = tmp_path / "save/run"
    kept = [json.loads(line) for line in (folder / FILE).read_text().splitlines()]
    evaluated = [line for line in logged(folder) if "eval/reward_size_mean" in line]
    assert [line["step"] for line in kept] == [line["step"] for line in evaluated] == [0, 1, 2]
    for scores, line in zip(kept, evaluated, strict=True):
        assert len(scores["scores"]["size"]) == 4 and np.mean(scores["scores"]["size"]) == pytest.approx(line["eval/reward_size_mean"])
    assert "95 % interval" in text and f"{compare(folder).intervals['reward_size_mean'][0]:+.3f} to" in text


@pytest.mark.parametrize(
    ("algorithm", "example"), [("nft", "nft/lora/flux1"), ("grpo-guard", "grpo_guard/lora/flux1"), ("crd", "crd/lora/sd3_5")]
)
def test_the_quick_start_goes_on_with_its_own_algorithm(algorithm, example, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    name = "examples/quickstart.yaml" if algorithm == "nft" else f"examples/quickstart/{algorithm}.yaml"
    commands = list(next_steps(load_config(name), tmp_path, tmp_path / "checkpoints/epoch_15").values())
    assert commands[0] == f"ff-eval {tmp_path} --base" and commands[-1] == f"ff-train examples/{example}.yaml --check"
    best = tmp_path / "checkpoints/epoch_9"
    compare, train_on, *_ = next_steps(load_config(name), tmp_path, tmp_path / "checkpoints/epoch_15", best).items()
    assert compare == ("compare the best weights with the base model, with confidence intervals", f"ff-eval {best} --base")
    assert train_on[0] == "train on from the best weights" and f"model.resume_path={best} " in train_on[1]
    spaced = next_steps(load_config(name), Path("my runs/a"), Path("my runs/a/checkpoints/epoch_1"))
    assert next(iter(spaced.values())) == "ff-eval 'my runs/a' --base"
    resumed = resume_command(load_config(name), Path("my runs/a"))
    assert resumed == "ff-train 'my runs/a/config.yaml' 'model.resume_path=my runs/a'"
    weights = load_config(name, ["model.resume_path=x", "model.resume_type=lora"])
    assert resume_command(weights, Path("a")).endswith("model.resume_path=a model.resume_type=null")
    own = load_config(name, ["rewards.0.reward_model=python:mine"])
    assert resume_command(own, Path("save/a")) == "model.resume_path=save/a"
    monkeypatch.chdir(tmp_path)  # installed from a wheel, there are no examples
    assert len(next_steps(load_config(ROOT / name, [f"data.dataset_dir={ROOT}/dataset/shapes"]), tmp_path, tmp_path)) == 2
