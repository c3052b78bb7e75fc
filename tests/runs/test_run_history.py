"""A run's folder has one history, whichever of its checkpoints a start goes on from."""

import json
import os
import shutil
import signal
from functools import partial
from pathlib import Path

import pytest

from flow_factory.config import load_config
from flow_factory.runs.ended import why_over
from flow_factory.runs.resume import Finished, find_start
from flow_factory.runs.run_folder import archive_later_checkpoints
from flow_factory.utils.errors import UserError
from tests.runs.folders import MORE, OWN, STATES, epochs, tree
from tests.tiny.killed import trap
from tests.tiny.run import logged, tiny, trained


@pytest.mark.slow
def test_going_on_from_an_earlier_checkpoint_sets_the_later_ones_aside(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = home / "save" / "run"
    seen = logged(run)
    keys = ("train.max_epochs=2", "train.seed=7", "log.keep_last_n=1", "model.resume_path=save/run/checkpoints/epoch_1")
    tiny(home, *STATES, *keys)()
    said = capsys.readouterr().err
    assert "note: train.seed was 42 and is 7\n" in said
    assert f"note: goes on after epoch 1: epoch_2, and the metrics since, are set aside in {run}/checkpoints/abandoned-1\n" in said
    assert epochs(run) == ["abandoned-1", "epoch_2"], "what was just written stays"
    aside = run / "checkpoints" / "abandoned-1"
    assert logged(aside) == seen[1:] and (aside / "epoch_2" / "state").is_dir()
    lines = logged(run)
    assert [line["step"] for line in lines] == [1, 2] and lines[0] == seen[0] and lines[1] != seen[1]
    again = tiny(home, *STATES, OWN, "train.seed=7", "train.max_epochs=4")
    wanted = json.loads((run / "checkpoints/epoch_2/state/progress.json").read_text())
    assert again.context.progress.updates == wanted["updates"] and wanted["run"]["may"]["train.seed"] == 7
    with pytest.raises(UserError, match="was set aside when .*/run was resumed from an earlier one: choose another run_name"):
        tiny(home, *STATES, f"model.resume_path={aside / 'epoch_2'}", "train.max_epochs=4")
    assert tiny(home, *STATES, f"model.resume_path={aside / 'epoch_2'}", "train.max_epochs=4", "run_name=b").context.progress.epoch == 2


def cut_at(rename: int, folder: Path, epoch: int) -> None:
    """Sets the later checkpoints aside in a process that is killed before one of its renames."""
    child = os.fork()
    if not child:
        trap("pathlib:Path.rename", rename, partial(os.kill, os.getpid(), signal.SIGKILL))
        archive_later_checkpoints(folder, epoch)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize("first", range(1, 5))
def test_a_kill_between_two_renames_leaves_no_abandoned_checkpoint_to_be_taken_up(home: Path, first: int) -> None:
    """Of the three later checkpoints none, some or all are moved, and then again by a start that is killed as well."""
    run = home / "save" / "run"
    for later in (3, 4):
        shutil.copytree(run / "checkpoints" / "epoch_2", run / "checkpoints" / f"epoch_{later}")
    saved, seen = tree(run / "checkpoints"), logged(run)
    auto, newest = (load_config(home / "tiny.yaml", [*STATES, "train.max_epochs=5", f"model.resume_path={path}"]) for path in ("auto", run))
    cut_at(first, run, epoch=1)
    for again in (None, 1, 2):  # the second start names the folder anew before it moves the rest
        if again is not None:
            cut_at(again, run, epoch=1)
        assert find_start(auto).path == find_start(newest).path == run / "checkpoints" / "epoch_1"
    assert (
        archive_later_checkpoints(run, 1)
        == f"goes on after epoch 1: epoch_2 to epoch_4, and the metrics since, are set aside in {run}/checkpoints/abandoned-1"
    )
    assert epochs(run) == ["abandoned-1", "epoch_1"]
    aside = run / "checkpoints" / "abandoned-1"
    assert logged(aside) == seen[1:]
    assert tree(aside).items() >= {(path, digest) for path, digest in saved.items() if not path.startswith("epoch_1")}
    assert find_start(auto).path == run / "checkpoints" / "epoch_1"


def test_a_start_that_was_cut_while_it_set_checkpoints_aside_goes_on(home: Path) -> None:
    """Or another epoch is named: what is abandoned is asked anew."""
    run = home / "save" / "run"
    for later in (3, 4):
        shutil.copytree(run / "checkpoints" / "epoch_2", run / "checkpoints" / f"epoch_{later}")
    cut_at(2, run, epoch=1)
    assert epochs(run) == [".abandoned-1-after-1", "epoch_1", "epoch_2", "epoch_3"]
    cut_at(2, run, epoch=2)
    auto = load_config(home / "tiny.yaml", [*STATES, "train.max_epochs=5", "model.resume_path=auto"])
    assert find_start(auto).path == run / "checkpoints" / "epoch_2"
    tiny(home, *STATES, "model.resume_path=save/run/checkpoints/epoch_1", "log.save_freq=0")()
    assert epochs(run) == ["abandoned-1", "epoch_1", "epoch_2"]
    assert sorted(p.name for p in (run / "checkpoints" / "abandoned-1").iterdir()) == ["epoch_2", "epoch_3", "epoch_4", "metrics.jsonl"]


def test_a_state_without_a_name_goes_on_in_its_own_folder(home: Path) -> None:
    """Which is what Ctrl-C advises: so the run's first evaluation stays what it is compared with."""
    for path in ("save/run", "save/run/checkpoints/epoch_2"):
        run = tiny(home, *STATES, "run_name=null", f"model.resume_path={path}", "train.max_epochs=3")
        assert run.folder.resolve() == home / "save" / "run" and run.context.progress.epoch == 2
    away = tiny(home, *STATES, "run_name=null", OWN, "train.max_epochs=3", "log.save_dir=mine")
    assert away.folder.parent == Path("mine"), "but not in somebody else's"


def test_what_differs_and_may_is_a_line_each(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (home / "data" / "train.jsonl").open("a") as file:
        file.write('{"prompt": "another"}\n')
    tiny(home, *STATES, *MORE, "train.group_size=2", "train.unique_sample_num_per_epoch=4", "train.resolution=48", "train.seed=1")
    assert [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")] == [
        "note: data.dataset_dir has other rows than before",
        "note: train.seed was 42 and is 1",
        "note: train.height was 32 and is 48",
        "note: train.width was 32 and is 48",
        "note: train.group_size was 4 and is 2",
        "note: train.unique_sample_num_per_epoch was 2 and is 4",
    ]


def test_a_lower_learning_rate_is_in_effect_at_the_first_update(home: Path) -> None:
    """A ten-thousandth: the weights hardly move, and the unchanged config's do."""
    moved = {}
    for rate in (1e-3, 1e-7):
        run = tiny(home, *STATES, OWN, "train.max_epochs=3", f"train.learning_rate={rate}", "log.save_freq=0")
        before = trained(run)
        run.trainer.epoch()
        moved[rate] = max(float((after - before[k]).abs().max()) for k, after in trained(run).items())
        assert run.context.schedule.get_last_lr() == [rate]
    assert moved[1e-7] < 1e-3 * moved[1e-3]


def test_the_config_of_the_folder_is_the_running_ones_and_no_earlier_summary_says_that_it_has_ended(home: Path) -> None:
    assert why_over(load_config(home / "tiny.yaml", [*STATES, OWN]))
    tiny(home, *STATES, *MORE, "train.learning_rate=1e-5")
    assert "learning_rate: 1.0e-05" in (home / "save/run/config.yaml").read_text()
    assert not why_over(load_config(home / "tiny.yaml", [*STATES, OWN])), "the last checkpoint comes before its evaluation"


def test_a_checkpoint_in_the_current_folder_is_of_the_run_that_it_lies_in(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a path of one part, or with `..`; a copy elsewhere is of no run."""
    shutil.copytree("save/run/checkpoints/epoch_2", "epoch_2")

    def start(path: str, name: str) -> tuple[Path | None, bool]:
        found = find_start(
            load_config(home / "tiny.yaml", [*STATES, "train.max_epochs=3", f"run_name={name}", f"model.resume_path={path}"])
        )
        return found.folder, found.resumes

    assert start("epoch_2", "b") == (home / "save/b", False)
    with pytest.raises(Finished, match="epoch_2 has 2 epochs, and train.max_epochs is 2"):
        find_start(load_config(home / "tiny.yaml", [*STATES, "run_name=b", "model.resume_path=epoch_2"]))
    monkeypatch.chdir("save/run/checkpoints")
    assert start("epoch_2", "run") == start("../checkpoints/epoch_2", "null") == start("epoch_2", "null") == (home / "save/run", True)


def test_what_the_summary_advises_is_a_start(home: Path) -> None:
    """Of a run that has all its epochs and a training state."""
    (advice,) = [line.split()[2:] for line in (home / "save/run/summary.md").read_text().splitlines() if "run_name=run-longer" in line]
    assert tiny(home, *STATES, *advice).context.progress.epoch == 0
