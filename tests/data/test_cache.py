"""The cache of encoded rows: what comes back is exact or encoded anew, and equal tensors are kept once."""

import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import flow_factory.data.index as index_module
import flow_factory.data.shards as shards_module
from flow_factory.data.cache import ConditionCache
from flow_factory.data.conditions import Conditions
from flow_factory.data.index import MAGIC, RECORD, Index, Place
from flow_factory.data.packing import pack
from flow_factory.data.shards import digest
from flow_factory.types import Cond, Row
from flow_factory.utils.tensor_file import NAMES
from tests.data.cached import LARGE, encode, large, right, rows_of
from tests.data.encoded import encode_rows
from tests.data.rows import same, shard_of


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
