"""Several that write one cache at once, and ends in the middle: what comes back is right all the same."""

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest

from flow_factory.data.cache import ConditionCache
from flow_factory.data.conditions import Conditions
from flow_factory.types import Cond, Row
from flow_factory.utils.errors import RunError
from tests.data.cached import LARGE, encode, right, rows_of
from tests.data.encoded import encode_rows
from tests.data.rows import shard_of


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
        with pytest.raises(RunError, match=rf"^data.cache_dir: {tmp_path}: No space left on device: rows .* before are kept; free space"):
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
