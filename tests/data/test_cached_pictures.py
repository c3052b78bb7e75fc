"""Pictures of a cached row stay in the row's files, and one that changes is encoded anew."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import flow_factory.data.condition_files as condition_files
import flow_factory.data.fingerprints as fingerprints
from flow_factory.data.cache import ConditionCache
from flow_factory.data.media import open_image, open_video, save_video
from flow_factory.types import Clip, Cond, Row
from flow_factory.utils.errors import UserError
from tests.data.encoded import encode_rows
from tests.data.rows import same, shard_of


def pictured(folder: Path, seed: int = 0) -> Row:
    """Two pictures of noise, one on its side, and a video."""
    numbers = np.random.default_rng(seed)
    for k, exif in enumerate((1, 6)):
        info = Image.Exif()
        info[0x0112] = exif
        Image.fromarray(numbers.integers(0, 256, (200, 300, 3), dtype=np.uint8)).save(folder / f"{k}.png", exif=info)
    frames = [Image.fromarray(numbers.integers(0, 256, (64, 96, 3), dtype=np.uint8)) for _ in range(5)]
    if not (folder / "v.mp4").exists():
        save_video(Clip(frames, 8), folder / "v.mp4")
    return Row(0, "p", images=(str(folder / "0.png"), str(folder / "1.png")), videos=(str(folder / "v.mp4"),), source="train.jsonl:1")


def decoded(row: Row) -> Cond:
    first, second = (open_image(path, "") for path in row.images)
    return {"image": [first, second], "video": open_video(row.videos[0], "").frames, "small": first.resize((30, 20))}


def test_pictures_that_are_the_rows_files_are_not_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = pictured(tmp_path)
    conds = encode_rows([row], decoded, ConditionCache(tmp_path / "cache", "v1"), progress=False)
    assert same(conds[0], decoded(row))
    assert shard_of(tmp_path).stat().st_size < 30 * 20 * 3 + 4096
    held, opened = conds[0], []
    real = condition_files.frames_of
    monkeypatch.setattr(condition_files, "frames_of", lambda *given: opened.append(given) or real(*given))
    again = conds[0]
    assert again["image"][1] is held["image"][1] and again["video"][4] is held["video"][4] and not opened, "shared by all who hold them"
    del held, again
    assert same(conds[0], decoded(row)) and len(opened) == 3, "each file is decoded once"


def test_a_picture_that_was_changed_in_place_is_kept_in_pixels(tmp_path: Path) -> None:
    row = pictured(tmp_path)

    def marked(row: Row) -> Cond:
        picture = open_image(row.images[0], "")
        picture.putpixel((299, 199), (1, 2, 3))
        return {"image": picture}

    (cond,) = encode_rows([row], marked, ConditionCache(tmp_path / "cache", "v1"), progress=False)
    assert same(cond, marked(row)) and shard_of(tmp_path).stat().st_size > 300 * 200 * 3


def test_the_same_files_in_another_place_serve_the_same_row(tmp_path: Path) -> None:
    rows = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        rows.append(pictured(tmp_path / name))
    rows[1] = Row(1, "p", images=rows[1].images, videos=rows[0].videos)
    encode_rows(rows[:1], decoded, ConditionCache(tmp_path / "cache", "v1"), progress=False)
    for path in rows[0].images:
        Path(path).unlink()
    (cond,) = encode_rows(rows[1:], lambda row: pytest.fail("encoded"), ConditionCache(tmp_path / "cache", "v1"), progress=False)
    assert same(cond, decoded(rows[1]))


def test_a_picture_that_changes_while_the_run_goes_on_is_encoded_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    row, calls = pictured(tmp_path), list[int]()

    def counted(row: Row) -> Cond:
        calls.append(row.id)
        return decoded(row)

    conds = encode_rows([row], counted, ConditionCache(tmp_path / "cache", "v1"), progress=False)
    before = conds[0]["image"][0].tobytes()
    pictured(tmp_path, seed=1)
    for _ in range(2):
        assert same(conds[0], decoded(row)) and conds[:1][0]["image"][0].tobytes() != before
    assert calls == [0, 0]
    assert [record.message for record in caplog.records] == [
        f"train.jsonl:1: {row.images[0]} has changed since the run began; its row is encoded again"
    ]
    Path(row.images[0]).unlink()
    with pytest.raises(UserError, match=rf"^train.jsonl:1: {row.images[0]} cannot be read: No such file or directory; a run needs"):
        _ = conds[0]


def test_a_file_that_stays_the_same_is_not_read_again_by_a_later_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = pictured(tmp_path)
    for path in (*row.images, *row.videos):
        os.utime(path, (1e9, 1e9))
    first = ConditionCache(tmp_path / "cache", "v1")
    encode_rows([row], lambda row: {}, first, progress=False)
    monkeypatch.setattr(fingerprints, "file_sha256", lambda path: pytest.fail(f"{path} was read"))
    later = ConditionCache(tmp_path / "cache", "v1")
    assert later.key(row) == first.key(row)
    with (tmp_path / "cache" / "hashes.jsonl").open("a") as file:
        file.write('[1, "x", 3]\n[1]\nnonsense\n' + json.dumps([1, "y", "z", "w"]) + "\n")
    assert ConditionCache(tmp_path / "cache", "v1").key(row) == first.key(row)


def test_a_file_that_may_still_change_is_read_again(tmp_path: Path) -> None:
    """Where a file system counts in whole seconds, another content of the same size may have the same time. Here it is of the future."""
    row = pictured(tmp_path)
    for path, moment in zip((*row.images, *row.videos), (1e9, 4e9, 4e9), strict=True):
        os.utime(path, (moment, moment))
    encode_rows([row], lambda row: {}, ConditionCache(tmp_path / "cache", "v1"), progress=False)
    (line,) = (tmp_path / "cache" / "hashes.jsonl").read_text().splitlines()
    assert row.images[0] in line
