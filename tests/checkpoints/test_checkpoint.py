"""Folders of checkpoints are whole or absent, and the newest one is found."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from flow_factory.checkpoints.checkpoint import (
    CheckpointError,
    begin,
    checkpoints,
    finish,
    kind_of,
    newest,
    newest_state,
    partial_of,
    prune,
)
from flow_factory.checkpoints.lora_file import LORA_FILE


def test_pickles_are_not_read(tmp_path: Path) -> None:
    for name in ("optimizer.bin", "random_states_0.pkl"):
        (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match="holds pickles, which can run code; name"):
        kind_of(tmp_path)


def fill(text: str, fail: bool = False) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "a").write_text(text)
        if fail:
            raise OSError("no space left on device")
        (folder / "sub").mkdir()
        (folder / "sub" / "b").write_text(text)

    return write


def put(folder: Path, write: Callable[[Path], object]) -> None:
    partial = partial_of(folder)
    begin(partial)
    write(partial)
    finish(partial, folder)


def test_a_written_folder_replaces_the_old_one_whole(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "epoch_1"
    put(folder, lambda partial: (partial / "stale").write_text("old"))
    put(folder, fill("new"))
    assert sorted(str(p.relative_to(tmp_path)) for p in folder.rglob("*") if p.is_file()) == [
        "checkpoints/epoch_1/a", "checkpoints/epoch_1/sub/b"]  # fmt: skip
    assert [p.name for p in folder.parent.iterdir()] == ["epoch_1"]


@pytest.mark.parametrize("existed", [False, True])
def test_a_failed_write_leaves_what_was_there(tmp_path: Path, existed: bool) -> None:
    folder = tmp_path / "epoch_1"
    if existed:
        put(folder, fill("old"))
    with pytest.raises(OSError, match="no space"):
        put(folder, fill("new", fail=True))
    assert folder.exists() == existed and checkpoints(tmp_path) == [folder] * existed
    assert not existed or ((folder / "a").read_text(), (folder / "sub" / "b").read_text()) == ("old", "old")
    put(folder, fill("third"))
    assert (folder / "sub" / "b").read_text() == "third"


def test_leftovers_of_a_cut_are_in_nobodys_way(tmp_path: Path) -> None:
    for name in ("epoch_1", ".old-epoch_1", ".partial-epoch_1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "stale").write_text("")
    put(tmp_path / "epoch_1", fill("new"))
    assert [p.name for p in tmp_path.iterdir()] == ["epoch_1"] and not (tmp_path / "epoch_1" / "stale").exists()


@pytest.mark.parametrize(("files", "kind"), [
    ([LORA_FILE], "lora"), (["transformer/config.json"], "full"), (["state/progress.json"], "state"),
    ([LORA_FILE, "state/progress.json"], "state"), (["transformer/config.json", "state/progress.json"], "state"),
])  # fmt: skip
def test_what_a_folder_holds(tmp_path: Path, files: list[str], kind: str) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    assert kind_of(tmp_path) == kind


@pytest.mark.parametrize(("folder", "seen"), [("none", "no such folder or file"), ("empty", "empty"), ("full", "notes.txt")])
def test_a_folder_that_is_no_checkpoint_is_described(tmp_path: Path, folder: str, seen: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    with pytest.raises(CheckpointError, match=rf"resume_path: {tmp_path / folder} is not a checkpoint \({seen}\); one holds state/, "):
        kind_of(tmp_path / folder)


@pytest.mark.parametrize(("path", "hint"), [
    ("owner/name", True), ("owner/name/folder@main", True), ("hf://owner/name", True), ("gone", False), ("/owner/name", False),
])  # fmt: skip
@pytest.mark.parametrize("runs", [(), ("run",)])
def test_a_name_of_the_hub_is_to_be_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, hint: bool, runs: Sequence[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in runs:
        (tmp_path / "save" / name / "checkpoints").mkdir(parents=True)
    with pytest.raises(CheckpointError) as error:
        kind_of(Path(path))
    assert str(error.value).endswith("; if it is on the hub, download it, and name the folder") == hint
    assert ("Runs in save, newest first: run" in str(error.value)) == bool(runs)


def test_checkpoints_are_in_the_order_of_their_epochs(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    assert newest(tmp_path) == tmp_path and checkpoints(folder) == []
    for name in ("epoch_10", "epoch_9", "epoch_100", ".partial-epoch_200", ".old-epoch_300", "epoch_x", "epoch_400.bak"):
        (folder / name).mkdir(parents=True)
    assert [p.name for p in checkpoints(folder)] == ["epoch_9", "epoch_10", "epoch_100"]
    assert newest(tmp_path) == folder / "epoch_100" and newest(folder / "epoch_9") == folder / "epoch_9"
    assert newest(folder) == folder / "epoch_100", "the folder of checkpoints stands for its run"
    assert newest_state(tmp_path) is None and newest_state(tmp_path / "none") is None
    for name in ("epoch_9", "epoch_10"):
        (folder / name / "state").mkdir()
        (folder / name / "state" / "progress.json").touch()
    assert newest_state(tmp_path) == folder / "epoch_10"
    prune(folder, None)
    assert len(checkpoints(folder)) == 3
    prune(folder, 2)
    assert [p.name for p in checkpoints(folder)] == ["epoch_10", "epoch_100"] and (folder / "epoch_x").exists()
    prune(folder, 5)
    assert len(checkpoints(folder)) == 2
    prune(folder, 1, [folder / "epoch_10"])
    assert len(checkpoints(folder)) == 2, "what was just written stays"


def test_the_run_folder_of_another_program_has_its_checkpoints_by_another_name(tmp_path: Path) -> None:
    for place in ("checkpoint-9", "checkpoint-10", "checkpoints/checkpoint-20", "checkpoints/abandoned-1/epoch_99"):
        (tmp_path / place).mkdir(parents=True)
        assert newest(tmp_path).name == place.rsplit("/")[-1].replace("epoch_99", "checkpoint-20")
