"""A run of two data sets: rewards see their own rows, statistics and evaluations are each one's, and it goes on exactly."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor
from transformers import T5EncoderModel

from flow_factory.check import check
from flow_factory.commands.test_run import rehearse
from flow_factory.config import load_config
from flow_factory.core.advantage import AGGREGATIONS
from flow_factory.data.several import dataset_of
from flow_factory.training.run import Run
from tests.tiny.run import forwards, logged, read_state, tiny, write_rows, write_run
from tests.tiny.several import assert_same_run, several
from tests.tiny.two_datasets import DATASETS, REWARDS, SHAPES, WORDS, write_two
from tests.training.stopped import AUTO, assert_ends_as, stop
from tests.training.test_sft import SFT

pytestmark = pytest.mark.exhaustive
STATES = ("log.save_freq=1", "log.save_model_only=false", "eval.eval_freq=2")


def weighed(run: Run) -> list[tuple[str, Tensor, Tensor]]:
    """(data set, scores (n, R), advantages (n,)) of each group of the next epoch."""
    groups, seen = run.trainer.collector.epoch_groups(run.context.progress.epoch), list[Any]()
    learn = run.trainer.learner.learn
    run.trainer.learner.learn = lambda groups: (seen.extend(groups), learn(groups))[1]  # type: ignore[method-assign]
    run.trainer.epoch()
    names = [dataset_of(run.context.rows, group.row) for group in groups]
    return [(n, torch.cat([r.rewards for r in g]), torch.cat([r.advantage for r in g])) for n, g in zip(names, seen, strict=True)]


@pytest.mark.parametrize("aggregation", ["gdpo", "sum"])
def test_each_data_sets_advantages_are_those_of_its_own_groups_rewards_and_weights(tmp_path: Path, aggregation: str) -> None:
    write_two(tmp_path)
    run = tiny(tmp_path, f"train.advantage_aggregation={aggregation}", "train.unique_sample_num_per_epoch=6")
    groups = weighed(run)
    assert sorted(name for name, _, _ in groups) == ["shapes"] * 4 + ["words"] * 2
    for name, columns, weights in (("words", [0, 2], [1.0, 0.5]), ("shapes", [1, 2], [1.0, 0.01])):
        scores, advantages = (torch.stack(part) for part in zip(*[(s, a) for n, s, a in groups if n == name], strict=True))
        assert scores[..., [k for k in range(3) if k not in columns]].isnan().all(), "asked for its own alone"
        want, _ = AGGREGATIONS[aggregation](scores[..., columns].double(), torch.tensor(weights, dtype=torch.float64), True)
        torch.testing.assert_close(advantages, want)
        assert advantages.abs().max() > 0.1, "words in hundreds do not drown shapes in units"


def test_metrics_and_evaluations_are_each_data_sets(tmp_path: Path) -> None:
    """An evaluation's numbers are those of a run that has the data set alone, with its own keys."""
    file = write_two(tmp_path)
    written, said = file.read_text(), check(load_config(file))
    assert "words: " in said and "7 training rows, 3 test rows, 1 of 3 groups" in said and "training on words: ofwords = 1 x" in said
    text = tiny(tmp_path)()
    lines = logged(tmp_path / "save" / "run")
    first = {k: v for line in lines for k, v in line.items() if line["step"] == 0 and "seconds" not in k}
    assert {k for k in first if k.startswith("eval/")} >= {"eval/words/rows", "eval/words/reward_ofwords_mean", "eval/shapes/reward_mean"}
    assert first["eval/words/rows"] == 2 and first["eval/shapes/rows"] == 4
    assert "words/reward ofwords" in text and "evaluated on words: 2 of 3, shapes: 4 test rows" in text
    trained = next(line for line in lines if "train/reward_mean" in line)
    means = [trained[f"train/{name}/reward_mean"] for name in ("words", "shapes")]
    assert min(means) < trained["train/reward_mean"] < max(means)
    for name, keys in (("words", ["eval.num_inference_steps=2", "eval.max_rows=2"]), ("shapes", ["eval.resolution=48"])):
        tree = yaml.safe_load(written)
        entry = next(entry for entry in tree["data"].pop("datasets") if entry["name"] == name)
        tree["data"]["dataset_dir"] = entry["dataset_dir"]
        mine = [reward for reward in REWARDS if reward.get("applicable_datasets", [name]) == [name]]
        tree["rewards"] = [{k: w[name] if k == "weight" else w for k, w in r.items() if k != "applicable_datasets"} for r in mine]
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tree))
        alone = tiny(tmp_path, f"run_name={name}", *keys).evaluators[0].run()[0]
        for key, value in alone.items():
            if "seconds" not in key:
                assert first[key.replace("eval/", f"eval/{name}/")] == value, key


def test_one_entry_is_the_run_of_its_folder(tmp_path: Path) -> None:
    write_two(tmp_path, DATASETS[1:], [{"reward_model": "jpeg_compressibility", "name": "size", "weight": {"shapes": 1}}])
    entry = "data.datasets.0.eval={}"
    tiny(tmp_path, *STATES, entry, "run_name=entry")()
    file = tmp_path / "tiny.yaml"
    tree = yaml.safe_load(file.read_text())
    tree["data"] = {"dataset_dir": tree["data"]["datasets"][0]["dataset_dir"], "cache_dir": tree["data"]["cache_dir"]}
    tree["rewards"] = {"reward_model": "jpeg_compressibility", "name": "size"}
    file.write_text(yaml.safe_dump(tree))
    tiny(tmp_path, *STATES, "run_name=folder")()
    one, other = tmp_path / "save" / "entry", tmp_path / "save" / "folder"
    states = [read_state(run / "checkpoints" / "epoch_2") for run in (one, other)]
    assert states[0].keys() == states[1].keys() and all(torch.equal(t, states[1][name]) for name, t in states[0].items())
    assert [line.keys() for line in logged(one)] == [line.keys() for line in logged(other)]


@pytest.mark.parametrize(("path", "call"), [
    ("flow_factory.training.rollout:RolloutCollector.sample", 11), ("tests.tiny.two_datasets:OfShapes.__call__", 3),
    ("flow_factory.training.learner:Learner.velocity_of", 2), ("flow_factory.training.evaluation:Evaluator._draw", 4),
])  # fmt: skip
def test_a_run_that_is_stopped_goes_on_to_the_bit(tmp_path: Path, path: str, call: int) -> None:
    write_two(tmp_path)
    keys = (*STATES, "train.max_epochs=3")
    tiny(tmp_path, *keys, "run_name=unbroken")()
    stop(tiny(tmp_path, *keys, "run_name=stopped"), path, call)
    tiny(tmp_path, *keys, "run_name=stopped", AUTO)()
    assert_ends_as(tmp_path / "save" / "stopped", tmp_path / "save" / "unbroken")


def test_a_resume_says_which_data_set_has_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_two(tmp_path)
    tiny(tmp_path, *STATES, "train.max_epochs=1")()
    with (tmp_path / "words" / "train.jsonl").open("a") as file:
        file.write('{"prompt": "word more"}\n')
    tiny(tmp_path, *STATES, "train.max_epochs=2", "data.datasets.1.train.weight=3", AUTO)
    said = capsys.readouterr().err
    assert "note: data.datasets.words has other rows or another weight than before" in said
    assert "note: data.datasets.shapes has other rows or another weight than before" in said


def write_given(folder: Path) -> None:
    """Demonstrations in two data sets, whose files have the same names; and in one, whose rows are those of both."""
    write_run(folder)
    rows = []
    for number, (name, prompts) in enumerate({"words": WORDS, "shapes": SHAPES}.items()):
        (folder / name / "images").mkdir(parents=True)
        for k in range(2):
            Image.new("RGB", (32, 32), (90 * number, 200 * k, 40)).save(folder / name / "images" / f"{k}.png")
        its = [{"prompt": prompt, "target": f"{k % 2}.png"} for k, prompt in enumerate(prompts)]
        rows += [row | {"target": f"{name}/images/{row['target']}"} for row in its]
        for split in ("train", "test"):
            write_rows(folder / name / f"{split}.jsonl", its)
    write_rows(folder / "data" / "train.jsonl", rows)


def test_demonstrations_of_two_data_sets_are_those_of_one_that_has_the_rows_of_both(tmp_path: Path) -> None:
    """Encoded ahead, from the cache alone, in windows, and where each is encoded when it is drawn."""
    write_given(tmp_path)
    keys = (*SFT, "log.save_freq=2", "log.save_model_only=false")
    tiny(tmp_path, *keys, f"data.image_dir={tmp_path}", "eval.eval_freq=0", "run_name=one")()
    file = tmp_path / "tiny.yaml"
    tree = yaml.safe_load(file.read_text())
    del tree["data"]["dataset_dir"]
    tree["data"]["datasets"] = [{"name": n, "dataset_dir": str(tmp_path / n), "train": {}, "eval": {}} for n in ("words", "shapes")]
    file.write_text(yaml.safe_dump(tree))
    one = read_state(tmp_path / "save" / "one" / "checkpoints" / "epoch_2")
    ways = {"ahead": "encode=ahead", "again": "encode=ahead", "windows": "encode=window", "drawn": "enable_preprocess=false"}
    for name, way in ways.items():
        with forwards(T5EncoderModel) as seen:
            tiny(tmp_path, *keys, f"data.{way}", f"run_name={name}")()
        assert bool(seen) == (name == "drawn"), "all rows were encoded by the run of one data set"
        both = read_state(tmp_path / "save" / name / "checkpoints" / "epoch_2")
        assert both.keys() == one.keys() and [key for key in one if not torch.equal(one[key], both[key])] == []
        assert {"eval/words/loss", "eval/shapes/loss"} <= logged(tmp_path / "save" / name)[-1].keys()


RUNS: dict[str, Sequence[str]] = {
    "whole": (),
    "windows": ("data.encode=window", "data.encode_epochs=1", "data.cache_dir={folder}/other"),
    "shared": ("train.unique_sample_num_per_epoch=3", "train.gradient_step_per_epoch=1"),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    folders = {}
    for processes in (1, 2):
        folder = tmp_path_factory.mktemp(f"of_{processes}_")
        write_two(folder)
        keys = {name: ["train.adam_epsilon=1e-3", *STATES, *(key.format(folder=folder) for key in own)] for name, own in RUNS.items()}
        several(folder, processes, keys)
        folders[processes] = folder / "save"
    return folders


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_do_what_one_does(runs: dict[int, Path], name: str) -> None:
    assert_same_run(runs[2] / name, runs[1] / name)


def test_a_test_run_takes_a_group_of_each_data_set(tmp_path: Path) -> None:
    file = write_two(tmp_path, [DATASETS[0], DATASETS[1] | {"train": {"weight": 5}}])
    said, _ = rehearse(load_config(file, ["train.unique_sample_num_per_epoch=12"]), lambda: None)
    assert "groups of 4 samples" in said and "test rows" in said
