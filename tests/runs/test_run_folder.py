"""A run's folder has one owner."""

import os
import sys
from pathlib import Path

import pytest

from flow_factory.config import load_config
from flow_factory.runs.run_folder import LOCK, RunFolder, default_name
from flow_factory.train import build
from flow_factory.utils.errors import UserError
from tests.runs.folders import STATES, children, claimed, epochs, tree
from tests.tiny.patience import output
from tests.tiny.run import logged, started, tiny, write_run


@pytest.mark.parametrize("count", [2, 4, 8])
def test_of_starts_at_once_in_one_folder_one_goes_on(tmp_path: Path, count: int) -> None:
    """A killed one leaves the folder free."""
    write_run(tmp_path)
    folder = tmp_path / "save" / "run"
    with children(count, lambda _: claimed(folder)) as said:
        lost = [text for text in said if text != "run"]
        assert len(lost) == count - 1, said
        assert all(text.startswith(f"refused: {folder} is in use by another run") for text in lost)
        with pytest.raises(UserError, match=r"is in use by another run \(process \d+ on .*\); choose another run_name"):
            RunFolder(folder)
    claim = RunFolder(folder)
    claim.begin(load_config(tmp_path / "tiny.yaml"))
    claim.release()
    assert not (folder / LOCK).exists()


def test_of_starts_at_once_without_a_name_each_has_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last of them is asked all that a start is."""
    config = load_config(write_run(tmp_path))
    monkeypatch.setattr("time.strftime", lambda *_: "now")
    name = tmp_path / "save" / default_name(config)
    with children(8, lambda _: claimed(name, new=True)) as said:
        assert sorted(said) == sorted([name.name, *(f"{name.name}_{k}" for k in range(2, 9))])
        assert tiny(tmp_path, "run_name=null").folder.name == f"{name.name}_9"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "codes"), [("run", [0, 2]), ("null", [0, 0])])
def test_two_commands_at_once_lose_no_line(tmp_path: Path, name: str, codes: list[int]) -> None:
    write_run(tmp_path)
    command = [sys.executable, "-m", "flow_factory", "tiny.yaml", f"run_name={name}", "log.save_freq=1"]
    with started(command, tmp_path) as one, started(command, tmp_path) as other:
        said = [output(run, tmp_path)[1].splitlines() for run in (one, other)]
    assert sorted(run.returncode for run in (one, other)) == codes
    for run, lines in zip((one, other), said, strict=True):
        errors = [line for line in lines if line.startswith("error: ") or "Traceback" in line]
        assert len(errors) == (run.returncode == 2) and all("save/run " in line for line in errors)
    folders = list((tmp_path / "save").iterdir())
    assert len(folders) == codes.count(0)
    for folder in folders:
        assert [line["step"] for line in logged(folder)] == [0, 1, 1, 2, 2]
        assert epochs(folder) == ["epoch_1", "epoch_2"] and not (folder / LOCK).exists()


def test_a_folder_is_its_runs_until_it_ends(tmp_path: Path) -> None:
    run = tiny(tmp_path, *STATES, "train.max_epochs=1")
    before = tree(run.folder)

    def start(_: int) -> str:
        build(load_config(tmp_path / "tiny.yaml", [*STATES, "model.resume_path=auto"]))
        return "started"

    with children(1, start) as (said,):
        assert said.startswith(f"refused: {run.folder} is in use by another run (process {os.getpid()} on ")
    assert tree(run.folder) == before
    run()
    assert not (run.folder / LOCK).exists()
