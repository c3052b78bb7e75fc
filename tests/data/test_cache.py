"""The cache of encoded rows: what comes back is exact or encoded anew, whatever happens to its files; pictures stay where they are."""

import json
import logging
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import flow_factory.data.condition_files as condition_files
import flow_factory.data.fingerprints as fingerprints
import flow_factory.data.index as index_module
import flow_factory.data.shards as shards_module
from flow_factory.data.cache import ConditionCache
from flow_factory.data.conditions import Conditions
from flow_factory.data.index import MAGIC, RECORD, Index, Place
from flow_factory.data.media import open_image, open_video, save_video
from flow_factory.data.packing import SMALL, pack
from flow_factory.data.shards import digest
from flow_factory.types import Clip, Cond, Row
from flow_factory.utils.errors import RunError, UserError
from flow_factory.utils.tensor_file import NAMES
from tests.data.encoded import encode_rows
from tests.data.rows import same, shard_of

LARGE = SMALL + 1
"""Bytes of a tensor that does not stay with its row."""


def large(value: int) -> torch.Tensor:
    return torch.full((LARGE,), value, dtype=torch.uint8)


def rows_of(n: int, **given: Any) -> list[Row]:
    return [Row(k, f"row {k}", source=f"train.jsonl:{k + 1}", **given) for k in range(n)]


def encode(row: Row) -> Cond:
    return {"own": large(row.id), "negative": large(255), "small": torch.full((3,), float(row.id))}


def right(cond: Cond, row: Row) -> bool:
    return same(cond, encode(row))


# -- what comes back ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (7,), (LARGE,), (2, LARGE)], ids=str)
def test_tensors_of_every_dtype_and_shape_come_back(tmp_path: Path, shape: tuple[int, ...]) -> None:
    many = int(np.prod(shape))
    cond: Cond = {}
    for dtype in NAMES:
        raw = torch.arange(many * dtype.itemsize).remainder(2 if dtype == torch.bool else 251).to(torch.uint8)
        cond[str(dtype)] = raw.view(dtype).reshape(shape) if many else torch.empty(shape, dtype=dtype)
    wide = torch.arange(2 * LARGE).view(2, LARGE)
    cond["nested"] = ({"a": [wide.T, wide[:, ::2]]}, [], (), {})
    ConditionCache(tmp_path, "v1").put(Row(0, "p"), cond)
    got = ConditionCache(tmp_path, "v1").get(Row(0, "p"))
    assert got is not None and same(cond, got)
    assert all(t.is_contiguous() and t.data_ptr() % 64 == 0 for t in got.values() if isinstance(t, torch.Tensor) and t.numel())


def test_a_row_that_cannot_be_kept_is_computed_with_as_if_it_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cond = {"x": torch.arange(6.0).view(2, 3).T, "y": large(3)[::2], "image": Image.new("RGB", (9, 5), "red"), "t": (1, [None, "a"])}
    kept = ConditionCache(tmp_path / "a", "v1")
    kept.put(Row(0, "p"), cond)
    monkeypatch.setattr(shards_module.Shards, "append", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    got = Conditions(ConditionCache(tmp_path / "b", "v1"), rows_of(1), lambda row: cond)[0]
    assert same(got, kept.get(Row(0, "p"))) and got["x"].is_contiguous()


def test_a_strangers_row_that_names_no_hash_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = ConditionCache(tmp_path, "v1")
    key = bytes.fromhex(cache.key(Row(0, "p")))
    (*_, row) = pack({"x": large(1)}, key)
    for place in ("", "00", "ff" * 31, "ff" * 33, "x"):
        data = json.dumps([{"dict": {"x": {"tensor": 0}}}, [["U8", [LARGE], place]]]).encode()
        rest = len(data).to_bytes(8, "little") + data
        cache.shards.append([row._replace(parts=(digest(key, rest), rest))])
        assert ConditionCache(tmp_path, "v1").get(Row(0, "p")) is None
        assert "it is damaged" in caplog.text


def test_a_dtype_that_files_do_not_have_is_named(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"cond.x.0 is a tensor of torch.complex64, which is not cacheable"):
        ConditionCache(tmp_path, "v1").put(Row(0, "p"), {"x": [torch.zeros(2, dtype=torch.complex64)]})


# -- what it takes -----------------------------------------------------------------------------------------------------------------


def test_equal_tensors_are_kept_once(tmp_path: Path) -> None:
    rows = rows_of(8)
    for _ in range(2):  # a second run finds what the first has left, a third set of rows in it, too
        assert all(map(right, encode_rows(rows, encode, ConditionCache(tmp_path, "v1"), progress=False), rows))
        rows += [Row(k, f"row {k}") for k in range(8, 16)]
    size = sum(shard.stat().st_size for shard in tmp_path.rglob("*.shard"))
    assert 17 * LARGE < size < 17 * LARGE + 16 * 1024


def test_rows_go_to_another_shard_when_one_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards_module, "SHARD", 3 * LARGE)
    rows = rows_of(9)
    conds = encode_rows(rows, encode, ConditionCache(tmp_path, "v1"), progress=False)
    assert all(map(right, conds, rows))
    sizes = [shard.stat().st_size for shard in tmp_path.rglob("*.shard")]
    assert len(sizes) > 3 and max(sizes) <= 3 * LARGE + 4096


def test_a_start_with_25_000_rows_of_4_mb_reads_none_of_them(tmp_path: Path) -> None:
    """In shards with holes, of which the file system keeps nothing."""
    cache, rows, size = ConditionCache(tmp_path, "v1"), rows_of(25_000), 4 << 20
    cache.put(rows[0], {})
    shard = shard_of(tmp_path)
    os.truncate(shard, len(rows) * size)
    records = np.zeros(len(rows), RECORD)
    keys = b"".join(bytes.fromhex(cache.key(row))[:16] for row in rows)
    records["high"], records["low"] = np.frombuffer(keys, "<u8").reshape(-1, 2).T
    records["offset"], records["size"] = np.arange(len(rows)) * size, size
    shard.with_suffix(".index").write_bytes(MAGIC + records.tobytes())
    before = int(Path("/proc/self/io").read_text().split()[1]) if Path("/proc/self/io").exists() else 0
    encode_rows(rows, lambda row: pytest.fail("encoded"), ConditionCache(tmp_path, "v1"), progress=False)
    after = int(Path("/proc/self/io").read_text().split()[1]) if before else 0
    assert after - before < 20 * records.nbytes


def test_the_index_finds_every_place_of_a_key_the_last_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "MOST_FRESH", 7)
    index, keys = Index(tmp_path), [bytes([k]) * 16 + b"the rest" for k in range(10)]
    for n in range(100):
        index.add(keys[n % 10], Place(0, n, 1))
    index.number("x")
    for k, key in enumerate(keys):
        found = [place.offset for place in index.find(key)]
        assert found == sorted(found, reverse=True) and found[0] == 90 + k and set(found) <= set(range(k, 100, 10))
    assert not list(index.find(b"no such key here"))


# -- several at once, and ends in the middle -----------------------------------------------------------------------------------------


def keep(folder: Path, rows: list[Row]) -> None:
    cache = ConditionCache(folder, "v1")
    for row in rows:
        cache.put(row, encode(row))


def test_processes_that_write_the_same_rows_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    rows = rows_of(40)
    reader = Conditions(ConditionCache(tmp_path, "v1"), rows, encode)
    writers = [multiprocessing.get_context("fork").Process(target=keep, args=(tmp_path, rows)) for _ in range(2)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert all(map(right, reader, rows))
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert all(map(right, encode_rows(rows, lambda row: pytest.fail("encoded"), ConditionCache(tmp_path, "v1"), progress=False), rows))


def test_what_others_have_kept_since_is_found_when_rows_are_looked_up(tmp_path: Path) -> None:
    """As from one window to the next, where processes have other shares of the rows."""
    rows = rows_of(4)
    mine, other = ConditionCache(tmp_path, "v1"), ConditionCache(tmp_path, "v1")
    encode_rows(rows, encode, mine, progress=False, share=(0, 2))
    encode_rows(rows, encode, other, progress=False, share=(1, 2))
    assert all(map(right, encode_rows(rows, lambda row: pytest.fail("encoded"), mine, progress=False), rows))


def test_writers_that_are_killed_leave_rows_that_are_right(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows, chance = rows_of(60), random.Random(0)
    for _ in range(12):
        writer = multiprocessing.get_context("fork").Process(target=keep, args=(tmp_path, rows))
        writer.start()
        time.sleep(chance.uniform(0, 0.02))
        os.kill(writer.pid or 0, signal.SIGKILL)
        writer.join()
        cache = ConditionCache(tmp_path, "v1")
        assert all(found is None or right(found, row) for row in rows for found in [cache.get(row)])
    assert all(map(right, encode_rows(rows, encode, ConditionCache(tmp_path, "v1"), progress=False), rows))
    assert not caplog.records, "what was begun is not a damage"


def test_a_process_that_is_a_fork_of_another_has_its_own_shard(tmp_path: Path) -> None:
    rows, cache = rows_of(2), ConditionCache(tmp_path, "v1")
    cache.put(rows[0], encode(rows[0]))
    child = multiprocessing.get_context("fork").Process(target=cache.put, args=(rows[1], encode(rows[1])))
    child.start()
    child.join()
    assert child.exitcode == 0 and len(list(tmp_path.rglob("*.shard"))) == 2
    assert all(right(cond, row) for row in rows if (cond := cache.get(row)) is not None) and cache.get(rows[1]) is not None


def test_a_disk_that_is_full_costs_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """In the middle of a row, while the run goes on; with room again, rows are kept again."""
    rows, write = rows_of(6), os.pwrite
    conds = Conditions(ConditionCache(tmp_path, "v1"), rows, encode)
    assert right(conds[0], rows[0])
    sizes = [shard_of(tmp_path).with_suffix(suffix).stat().st_size for suffix in (".shard", ".index")]

    def full(file: int, data: memoryview, offset: int) -> int:
        if offset + len(data) > LARGE * 3:
            write(file, data[: len(data) // 2], offset)
            raise OSError(28, "No space left on device")
        return write(file, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        assert all(map(right, (*conds, *conds), rows * 2))
        (record,) = caplog.records
        assert record.message.startswith(f"data.cache_dir: {tmp_path}: No space left on device") and "encodes rows again" in record.message
        assert [shard_of(tmp_path).with_suffix(suffix).stat().st_size for suffix in (".shard", ".index")] == sizes
        with pytest.raises(RunError, match=rf"^data.cache_dir: {tmp_path}: No space left on device: rows .* before are kept; make room"):
            encode_rows(rows, encode, conds.cache, progress=False)
        later = encode_rows(rows, encode, conds.cache, progress=False, strict=False)
        assert all(map(right, later, rows)) and len(caplog.records) == 1
    assert all(map(right, conds, rows))
    assert all(map(right, encode_rows(rows, lambda row: pytest.fail("encoded"), ConditionCache(tmp_path, "v1"), progress=False), rows))


@pytest.mark.parametrize("what", ["the tensor of its own", "the tensor of all"])
def test_a_bit_that_flips_in_a_large_tensor_is_noticed_once(tmp_path: Path, caplog: pytest.LogCaptureFixture, what: str) -> None:
    rows, calls = rows_of(3), list[int]()
    encode_rows(rows, encode, ConditionCache(tmp_path, "v1"), progress=False)
    shard = shard_of(tmp_path)
    data = bytearray(shard.read_bytes())
    data[data.index(bytes([1 if what == "the tensor of its own" else 255]) * LARGE) + 77] ^= 4
    shard.write_bytes(data)

    def again(row: Row) -> Cond:
        calls.append(row.id)
        return encode(row)

    conds = Conditions(ConditionCache(tmp_path, "v1"), rows, again)
    assert all(map(right, (*conds, *conds), rows * 2)) and len(caplog.records) == 1
    assert calls == ([1] if what == "the tensor of its own" else [0]), "the tensor of all is back with the first row"
    conds = Conditions(ConditionCache(tmp_path, "v1"), rows, again)
    assert all(map(right, conds, rows)) and len(calls) == 1


# -- pictures stay where they are ----------------------------------------------------------------------------------------------------


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


# -- words ---------------------------------------------------------------------------------------------------------------------------


def test_rows_of_an_earlier_version_are_said_once_and_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "ab").mkdir()
    old = tmp_path / "ab" / f"{'ab' * 32}.safetensors"
    old.write_bytes(b"old")
    with caplog.at_level(logging.WARNING):
        encode_rows(rows_of(2), encode, ConditionCache(tmp_path, "v1"))
    (record,) = caplog.records
    assert "rows of an earlier version, which are not read; 'ff-data cache prune --old' removes them" in record.message and old.exists()


def test_another_formats_index_is_a_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = rows_of(2)
    encode_rows(rows, encode, ConditionCache(tmp_path, "v1"), progress=False)
    index = shard_of(tmp_path).with_suffix(".index")
    index.write_bytes(b"x" + index.read_bytes()[1:])
    assert all(map(right, encode_rows(rows, encode, ConditionCache(tmp_path, "v1"), progress=False), rows))
    assert [str(index) in record.message for record in caplog.records] == [True]
