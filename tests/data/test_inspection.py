"""Every condition file is decoded once, and remembered while it stays what it is."""

import os
from pathlib import Path

import pytest
from PIL import Image

from flow_factory.data import inspection
from flow_factory.data.inspection import Record, inspect_files
from flow_factory.data.media import save_video
from flow_factory.data.reader import DataError
from flow_factory.types import Clip
from flow_factory.utils.errors import UserError


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were decoded."""
    seen: list[str] = []
    real = inspection.check_whole
    monkeypatch.setattr(inspection, "check_whole", lambda path, *rest: (seen.append(Path(path).name), real(path, *rest))[1])
    return seen


def files(folder: Path) -> dict:
    for k in range(3):
        Image.effect_noise((40 + k, 30), 50).save(folder / f"{k}.png")
    save_video(Clip([Image.new("RGB", (64, 48), (k * 9, 0, 0)) for k in range(5)], 8.0), folder / "v.mp4")
    return {(str(folder / f"{k}.png"), "image"): f"d:{k}" for k in range(3)} | {(str(folder / "v.mp4"), "video"): "d:3"}


def test_a_second_start_decodes_what_has_changed_alone(tmp_path: Path, decoded: list[str]) -> None:
    named, record = files(tmp_path), tmp_path / "cache" / "media.jsonl"
    first = inspect_files(named, Record(record), progress=False)
    assert decoded == ["0.png", "1.png", "2.png", "v.mp4"]
    assert sorted(first.values()) == [(40, 30, 1), (41, 30, 1), (42, 30, 1), (64, 48, 5)]
    assert inspect_files(named, Record(record), progress=False) == first and len(decoded) == 4
    os.utime(tmp_path / "1.png", ns=(1, 1))
    Image.new("RGB", (50, 30)).save(tmp_path / "2.png")
    with record.open("a") as file:
        file.write("half a li")
    assert inspect_files(named, Record(record), progress=False)[str(tmp_path / "2.png")] == (50, 30, 1)
    assert decoded[4:] == ["1.png", "2.png"]


def test_what_was_whole_is_remembered_though_another_is_not(tmp_path: Path, decoded: list[str]) -> None:
    named, record = files(tmp_path), tmp_path / "media.jsonl"
    bad = tmp_path / "2.png"
    bad.write_bytes(bad.read_bytes()[:-50])
    for _ in range(2):
        with pytest.raises(DataError, match=r"^d:2: .*2.png: damaged or truncated"):
            inspect_files(named, Record(record), progress=False)
    assert decoded == ["0.png", "1.png", "2.png", "2.png"]


def test_processes_share_the_decoding(tmp_path: Path, decoded: list[str]) -> None:
    named, keys = files(tmp_path), list(files(tmp_path))
    (tmp_path / "1.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"^d:1: "):  # headers are read by all
        inspect_files(named, Record(tmp_path / "media.jsonl"), keys[:1], progress=False)
    assert decoded == ["0.png"]


def test_a_record_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    with pytest.raises(UserError, match=r"^data.cache_dir: .*cache/?.*: (Not a directory|File exists); choose another folder$"):
        inspect_files(files(tmp_path), Record(tmp_path / "cache" / "media.jsonl"), progress=False)
