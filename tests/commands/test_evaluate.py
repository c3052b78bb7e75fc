"""`ff-eval`: checkpoints and the base judged on the same pairs of prompt and noise."""

import errno
import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from flow_factory.commands import evaluating, places
from flow_factory.commands.drawing import StockPipeline
from flow_factory.commands.evaluate import main
from flow_factory.commands.evaluation_folder import EvaluationFolder, takes
from flow_factory.commands.places import default_out, first_free
from flow_factory.config import load_config
from flow_factory.types import Row
from flow_factory.utils.errors import UserError
from tests.tiny.run import logged, tiny, write_run
from tests.tiny.side_by_side import side_by_side
from tests.tiny.two_datasets import write_two

BRIGHT = "rewards:\n  - reward_model: tests.tiny.rewards.Bright\n"
SOME = """\
rewards:
  - {reward_model: tests.commands.test_evaluate.some, batch_size: 3}
  - {reward_model: tests.tiny.rewards.Outshines, batch_size: 1}
"""


def some(images: Sequence[Any], prompts: Sequence[str]) -> list[float | None]:
    return [None if prompt == "mars" else float(sum(image.tobytes())) for image, prompt in zip(images, prompts, strict=True)]


def results(folder: str | Path) -> dict[tuple[str, str], dict[str, Any]]:
    """By reward and weights."""
    return {(one["reward"], one["weights"]): one for one in json.loads(Path(folder, "results.json").read_text())["results"]}


@pytest.mark.parametrize(("words", "line"), [
    (["--out", "x"], "name a checkpoint, or --base with --config"),
    (["--base"], "--base alone: name the YAML of a run with --config"),
    (["--base", "--config", "rewards.yaml"], "--base alone: name the YAML of a run with --config"),
    (["--base", "--config", "rewards.yaml", "rewards.yaml"], "rewards.yaml and rewards.yaml are both of rewards alone; name one"),
    (["--base", "--config", "tiny.yaml", "--set", "num_inference_step=3"], "Did you mean 'num_inference_steps'"),
    (["--base", "--config", "tiny.yaml", "--data", "absent.txt"], "no data set folder absent.txt; "),
    (["--base", "--config", "tiny.yaml", "--data", "absent"], ". --data names a folder with "),
    (["--base", "--config", "tiny.yaml", "--data", "rewards.yaml"], "--data: rewards.yaml is a file, but not one of "),
    (["--base", "--config", "tiny.yaml", "--data", "untested"], "no test split in untested"),
    (["--base", "--config", "trained.yaml"], "no test rows, seen from "),
    (["--base", "--config", "tiny.yaml", "wrong.yaml"], "jpeg_compressibilit"),
    (["--base", "--config", "tiny.yaml", "--out", "tiny.yaml"], "--out: tiny.yaml"),
    (["--base", "--config", "tiny.yaml", "--compare", "nfd"], "no recipe 'nfd'. Did you mean 'nft'?"),
])  # fmt: skip
def test_what_cannot_be_judged_is_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], line: str
) -> None:
    text = write_run(tmp_path).read_text()
    Path("rewards.yaml").write_text(BRIGHT)
    Path("wrong.yaml").write_text("rewards:\n  reward_model: jpeg_compressibilit\n")
    Path("untested").mkdir()
    Path("untested/train.txt").write_text("a fox\n")
    Path("trained.yaml").write_text(text.replace(f"dataset_dir: {tmp_path / 'data'}", "dataset_dir: untested"))
    monkeypatch.setattr(places, "DEEP", 2)
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "error: " in said and line in said


def test_the_folder_keeps_one_protocol_and_what_was_whole(tmp_path: Path) -> None:
    rows, weights = [Row(4, "a"), Row(7, "b")], {"a": {"checkpoint": "x", "sha256": "1"}}
    first = EvaluationFolder(tmp_path, {"data": {"": {"steps": 8}}}, weights, 0)
    first.keep("a", "", rows, {"size": [[1.0, math.nan], [3.0, 4.0]]})
    with first.file.open("a") as file:
        file.write('{"weights": "a", "rows": [9')
    again = EvaluationFolder(tmp_path, {"data": {"": {"steps": 8}}}, {"b": {"checkpoint": "y", "sha256": "2"}}, 1)
    assert again.scores() == {("a", "", 4): {"size": [1.0, None]}, ("a", "", 7): {"size": [3.0, 4.0]}}
    assert again.file.name == "scores-2.jsonl", "a start of its own, and its second process"
    assert json.loads((tmp_path / "protocol.json").read_text())["weights"] == weights, "what the first process writes"
    for protocol, weight, line in (
        ({"data": {"": {"steps": 4}}}, {}, "has data.steps: 8, and this evaluation 4"),
        ({"data": {"": {"steps": 8}}}, {"a": {"checkpoint": "z", "sha256": "3"}}, "a was x with other weights"),
    ):
        with pytest.raises(UserError, match=line):
            EvaluationFolder(tmp_path, protocol, weight, 0)
    with first.file.open("a") as file:
        file.write("\n")
    with pytest.raises(UserError, match="is damaged"):
        again.scores()


def test_a_folder_of_its_own_is_beside_the_checkpoints_and_never_of_another_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "save" / "a"
    places = [run / "checkpoints" / f"epoch_{k}" for k in range(1, 6)]
    for place in places:
        place.mkdir(parents=True)
    (run / "config.yaml").touch()
    (tmp_path / "lora.safetensors").touch()
    weights = [(place, place.name) for place in places]
    assert default_out("eval", [(None, "base"), *weights[:2]], None) == run / "eval-epoch_1-epoch_2"
    assert default_out("eval", weights, None).name == "eval-epoch_1-epoch_2-epoch_3-2-more"
    assert default_out("generated", [(None, "base")], run / "config.yaml") == run / "generated-base"
    assert default_out("eval", [(Path("lora.safetensors"), "lora")], Path("tiny.yaml")) == Path("eval-lora"), "of no run"

    monkeypatch.chdir(tmp_path)
    assert default_out("eval", [(Path("save/a/checkpoints/epoch_1"), "epoch_1")], None) == Path("save/a/eval-epoch_1"), "as it was written"

    out, origins = default_out("eval", weights[:1], None), {"epoch_1": {"checkpoint": "x", "sha256": "1"}}
    EvaluationFolder(out, {"seeds": [1]}, origins, 0)
    assert first_free(out, partial(takes, protocol={"seeds": [1]}, weights=origins)) == out, "it goes on"
    assert first_free(out, partial(takes, protocol={"seeds": [2]}, weights=origins)) == run / "eval-epoch_1-2"
    changed = {"epoch_1": {"checkpoint": "x", "sha256": "2"}}
    assert first_free(out, partial(takes, protocol={"seeds": [1]}, weights=changed)) == run / "eval-epoch_1-2"
    for damaged in ("{", '{"protocol": {"seeds": [1]}, "weights": {"epoch_1": {"checkpoint": "x"}}}'):
        (out / "protocol.json").write_text(damaged)
        assert not takes(out, {"seeds": [1]}, origins)
        with pytest.raises(UserError, match=r"protocol\.json is damaged \(.*\); name another folder"):
            EvaluationFolder(out, {"seeds": [1]}, origins, 0)
    monkeypatch.setattr(Path, "read_text", denied)
    assert not takes(out, {"seeds": [1]}, origins)
    with pytest.raises(UserError, match=r"protocol\.json: Permission denied; name a folder that can be read"):
        EvaluationFolder(out, {"seeds": [1]}, origins, 0)


def denied(path: Path, *_: Any) -> str:
    raise PermissionError(errno.EACCES, "Permission denied", str(path))


def test_the_main_process_alone_chooses_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(write_run(tmp_path))
    monkeypatch.setattr(evaluating.Evaluation, "main", False)
    monkeypatch.setattr(evaluating, "broadcast_object_list", lambda own: [tmp_path / "eval-base-2"])
    monkeypatch.setattr(evaluating, "first_free", lambda *_: pytest.fail("another process looks too"))
    evaluation = evaluating.Evaluation(config, [(None, "base")], [], [0], tmp_path / "eval-base", 1, numbers=True)
    assert evaluation.folder.path == tmp_path / "eval-base-2"


@pytest.mark.exhaustive
def test_the_seed_of_a_runs_evaluation_gives_its_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tiny(tmp_path, "log.save_freq=1", "train.learning_rate=1e-1", "rewards.reward_model=tests.tiny.rewards.Bright", "eval.seed=5")
    run()
    wanted = [line["eval/reward_size_mean"] for line in logged(run.folder) if "eval/reward_size_mean" in line]
    capsys.readouterr()
    assert main([str(run.folder), "--base", "--seeds", "5", "--device", "cpu", "--compare", "nft"]) == 0
    said = capsys.readouterr().out
    assert "| GenEval score" in said and "The recipe has strict, shapes, and this evaluation size: nothing can be compared." in said
    assert "Protocol: 4 prompts" in said and "3 steps, guidance 3.5, 32 x 32 px" in said
    found = results(run.folder / "eval-epoch_2")
    assert [found["size", label]["mean"]["mean"] for label in ("base", "epoch_2")] == pytest.approx([wanted[0], wanted[-1]], rel=1e-5)
    against = found["size", "epoch_2"]["against"]
    assert against["difference"]["mean"] == pytest.approx(wanted[-1] - wanted[0], rel=1e-3) and against["difference"]["mean"] != 0


@pytest.mark.exhaustive
def test_a_killed_evaluation_goes_on_and_ends_as_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tiny(tmp_path, "log.save_freq=1", "train.learning_rate=1e-1")
    run()
    Path("some.yaml").write_text(SOME)
    words = [str(run.folder / "checkpoints" / "epoch_1"), "--base", "--config", "some.yaml", "--seeds", "0-3", "--batch", "3"]
    assert main([*words, "--out", "whole"]) == 0
    drawn, keep = [], EvaluationFolder.keep
    draw = StockPipeline.draw
    monkeypatch.setattr(StockPipeline, "draw", lambda self, rows, *rest: drawn.append(len(rows)) or draw(self, rows, *rest))

    def kept(self: EvaluationFolder, *given: Any) -> None:
        keep(self, *given)
        if len(self.scores()) == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(EvaluationFolder, "keep", kept)
    assert main(words) == 130 and sum(drawn) == 24
    monkeypatch.setattr(EvaluationFolder, "keep", keep)
    drawn.clear()
    capsys.readouterr()
    assert main(words) == 0 and sum(drawn) == 8, "the two rows of the checkpoint that were left"
    out = run.folder / "eval-epoch_1"
    said = capsys.readouterr()
    assert f"{out}: goes on" in said.err and f"tables: {out}/results.md" in said.out
    assert {name: Path(out, name).read_bytes() for name in ("results.md", "results.csv")} == {
        name: Path("whole", name).read_bytes() for name in ("results.md", "results.csv")
    }
    assert results(out)["some", "base"]["missing"] == 4 and ("outshines", "base") in results(out), "mars; groups are compared"
    drawn.clear()
    words += ["--out", str(out)]
    assert main([str(run.folder), *words]) == 0 and sum(drawn) == 16, "a checkpoint more, and nothing again"
    assert main([*words, "--set", "height=48"]) == 2
    assert "has data.height: 32, and this evaluation 48; name another folder" in capsys.readouterr().err


@pytest.mark.exhaustive
def test_each_data_set_has_its_own_rewards_and_sizes(tmp_path: Path) -> None:
    assert main(["--base", "--config", str(write_two(tmp_path)), "--seeds", "0,1"]) == 0
    found = [(one["dataset"], one["reward"], one["pairs"]) for one in json.loads(Path("eval-base/results.json").read_text())["results"]]
    assert found == [("words", "ofwords", 4), ("words", "both", 4), ("shapes", "ofshapes", 8), ("shapes", "both", 8)]
    text = Path("eval-base/results.md").read_text()
    assert "2 steps, guidance 3.5, 32 x 32 px" in text and "3 steps, guidance 3.5, 48 x 48 px" in text


def judge(rank: int, words: list[str]) -> None:
    assert main(words) == 0


@pytest.mark.exhaustive
def test_processes_share_the_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = yaml.safe_load(write_run(tmp_path).read_text())
    tree["rewards"] = {"reward_model": "tests.tiny.rewards.Bright"}
    Path("bright.yaml").write_text(yaml.safe_dump(tree))
    words = ["--base", "--config", "bright.yaml", "--seeds", "0-1", "--batch", "2"]
    side_by_side(2, tmp_path, judge, words)
    files = sorted(path.name for path in Path("eval-base").glob("scores-*"))
    assert files == ["scores-0.jsonl", "scores-1.jsonl"] and Path("said.1").read_text().count("Protocol") == 0
    assert main([*words, "--out", "alone"]) == 0
    assert Path("eval-base/results.csv").read_bytes() == Path("alone/results.csv").read_bytes()
