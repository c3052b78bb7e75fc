"""What the file system has, and whether it may be written, is found out without leaving anything."""

import os
from pathlib import Path

import pytest

from flow_factory.utils.errors import UserError
from flow_factory.utils.files import require_readable, require_writable

NOBODY = 65534


def tree(folder: Path) -> list[str]:
    return sorted(str(p) for p in folder.rglob("*"))


@pytest.mark.parametrize("name", ["", "new", "new/deep", "a link"])
def test_a_folder_that_can_be_written_is_left_as_it_was(tmp_path: Path, name: str) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "a link").symlink_to(tmp_path / "there")
    before = tree(tmp_path)
    require_writable(tmp_path / name, "log.save_dir", "choose another")
    assert tree(tmp_path) == before


@pytest.mark.parametrize(("name", "reason"), [
    ("file", "Not a directory"), ("file/below", "Not a directory"), ("gone", "No such file or directory"),
    ("gone/below", "No such file or directory"), ("n" * 300, "File name too long"), ("a/" + "n" * 300, "File name too long"),
    ("/proc/nothing", "No such file or directory"), ("loop", "Too many levels of symbolic links"),
])  # fmt: skip
def test_one_that_cannot_is_one_line_also_for_root(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(UserError, match=rf"^log.save_dir: .*: {reason}; choose another$"):
        require_writable(tmp_path / name, "log.save_dir", "choose another")


@pytest.mark.skipif(os.getuid() != 0, reason="needs another user to be")
def test_as_another_user(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (tmp_path / "secret").chmod(0)
    os.seteuid(NOBODY)
    try:
        with pytest.raises(UserError, match=r"^data: .*: Permission denied; ask"):
            require_readable(tmp_path / "secret", "data", "ask")
        with pytest.raises(UserError, match=r"^log.save_dir: .*: Permission denied; ask"):
            require_writable(tmp_path / "new", "log.save_dir", "ask")
    finally:
        os.seteuid(0)
