"""The cache of encoded rows: each row is encoded once, and comes back to the bit."""

import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import flow_factory.data.fingerprints as fingerprints
from flow_factory.data.cache import ConditionCache
from flow_factory.data.packing import SMALL
from flow_factory.types import Cond, Row
from tests.data.encoded import encode_rows
from tests.data.rows import fake_encoder, rows_of, same


def test_editing_one_line_encodes_one_row(tmp_path):
    calls: list[str] = []
    cache = ConditionCache(tmp_path, "v1")
    encode_rows(rows_of("a", "bb", "ccc"), fake_encoder(calls), cache, progress=False)
    conds = encode_rows(rows_of("new line", "a", "bb", "edited"), fake_encoder(calls), cache, progress=False)
    assert calls == ["a", "bb", "ccc", "new line", "edited"]
    assert [c["note"] for c in conds] == ["new line", "a", "bb", "edited"]


@pytest.mark.parametrize("processes", [1, 2, 3, 9])
def test_processes_share_out_the_rows_that_are_wanted(tmp_path, processes):
    calls: list[str] = []
    rows, wanted = rows_of(*map(str, range(10))), [0, 2, 3, 5, 7, 8, 9]
    cache = ConditionCache(tmp_path, "v1")
    for k in range(processes):
        before = len(calls)
        conds = encode_rows(rows, fake_encoder(calls), cache, False, wanted, (k, processes))
        assert abs(len(calls) - before - len(wanted) / processes) < 1
    assert sorted(calls) == [str(k) for k in wanted]
    assert [conds[k]["note"] for k in wanted] == [str(k) for k in wanted]
    assert conds[1]["note"] == calls[-1] == "1", "one that nobody looked ahead for"


def test_a_row_that_was_looked_up_does_without_its_files(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    row = Row(0, "a", images=(str(tmp_path / "a.png"),))
    conds = encode_rows([row], fake_encoder([]), ConditionCache(tmp_path / "cache", "v1"), False)
    (tmp_path / "a.png").unlink()
    fingerprints._file_sha256.cache_clear()
    assert conds[0]["note"] == conds[-1:][0]["note"] == "a"


def test_a_process_looks_at_the_files_of_its_own_rows_alone(tmp_path, monkeypatch):
    read: list[str] = []
    monkeypatch.setattr(ConditionCache, "hash_of", lambda _, row, path: read.append(path) or path)
    rows = [Row(k, "a", images=(f"{k}.png",)) for k in range(6)]
    encode_rows(rows, fake_encoder([]), ConditionCache(tmp_path, "v1"), False, None, (1, 3))
    assert set(read) == {"1.png", "4.png"}


def test_equal_rows_are_encoded_once(tmp_path):
    calls: list[str] = []
    rows = [Row(0, "a"), Row(1, "a", columns={"kind": "x"}), Row(2, "a", "no")]
    assert len(encode_rows(rows, fake_encoder(calls), ConditionCache(tmp_path, "v1"), progress=False)) == 3
    assert calls == ["a", "a"]


def test_another_fingerprint_is_another_cache(tmp_path):
    calls: list[str] = []
    for fingerprint in ("v1", "v2", "v1"):
        encode_rows(rows_of("a"), fake_encoder(calls), ConditionCache(tmp_path, fingerprint), progress=False)
    assert calls == ["a", "a"]


def test_what_comes_back_is_exact(tmp_path):
    shared = torch.randn(4, 3)
    numbers = np.random.default_rng(0)
    pictures = [Image.fromarray(numbers.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in ((3, 5), (1, 1))]
    cond = {
        "bf16": torch.randn(2, 5).bfloat16(),
        "f32": torch.tensor([0.1, float("nan"), -0.0, 1e-42]),
        "transposed": torch.arange(6.0).view(2, 3).T,
        "ids": torch.tensor([1, -(2**62)]),
        "mask": torch.tensor([True, False]),
        "ragged": [[torch.randn(3, 2), torch.randn(1, 2)], []],
        "twice": (shared, shared),
        "part": {"deep": [shared[1:], None]},
        "a.0": torch.zeros(1),
        "a": [torch.ones(1)],
        "none": None,
        "scale": 0.1,
        "n": 3,
        "flag": True,
        "text": 'Würfel "x" \n',
        "image": pictures[0],
        "video": [pictures, (pictures[1],)],
    }
    cache = ConditionCache(tmp_path, "v1")
    assert cache.get(Row(0, "p")) is None
    cache.put(Row(0, "p"), cond)
    got = cache.get(Row(0, "p"))
    assert got is not None and same(cond, got)
    assert got["transposed"].is_contiguous()


def test_what_cannot_be_kept_is_named(tmp_path):
    with pytest.raises(TypeError, match=r"cond.images.1 is a object"):
        ConditionCache(tmp_path, "v1").put(Row(0, "p"), {"images": [None, object()]})


def test_an_image_of_a_mode_that_is_not_kept_is_named(tmp_path):
    with pytest.raises(TypeError, match=r"cond.image is a CMYK image, which is not cacheable"):
        ConditionCache(tmp_path, "v1").put(Row(0, "p"), {"image": Image.new("CMYK", (2, 2))})


def test_images_live_as_long_as_somebody_holds_them(tmp_path):
    """A data set whose images together exceed the memory must go through an epoch."""
    pictures = Image.new("RGB", (4, 4), "red")
    conds = encode_rows(rows_of("a", "bb"), lambda row: {"image": pictures}, ConditionCache(tmp_path, "v1"), progress=False)
    first, again = conds[0]["image"], conds[0]["image"]
    assert first is again and first is not conds[1]["image"]
    made = weakref.ref(first)
    del first, again
    assert made() is None and same(conds[0]["image"], pictures)
    assert len(conds[1:]) == 1 and same(conds[1:][0]["image"], pictures)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux only")
def test_a_shard_is_mapped_once_however_many_rows_are_held(tmp_path):
    """Linux maps 65,530 files for a process: a map for every row would end larger data sets."""
    maps, open_files = Path("/proc/self/maps"), Path("/proc/self/fd")
    large = lambda row: {"prompt_embeds": torch.full((SMALL,), row.id, dtype=torch.uint8)}  # noqa: E731
    conds = encode_rows(rows_of(*map(str, range(200))), large, ConditionCache(tmp_path, "v1"), progress=False)
    before, files = len(maps.read_text().splitlines()), len(list(open_files.iterdir()))
    held = [conds[k]["prompt_embeds"] for k in range(200)]
    assert sum(".shard" in line for line in maps.read_text().splitlines()) == 1
    assert len(maps.read_text().splitlines()) < before + 50 and len(list(open_files.iterdir())) <= files
    assert all(torch.equal(tensor, large(row)["prompt_embeds"]) for tensor, row in zip(held, conds.rows, strict=True))


def test_a_changed_condition_file_encodes_its_row_alone(tmp_path):
    files = [tmp_path / f"{k}.png" for k in range(3)]
    for k, path in enumerate(files):
        Image.new("RGB", (4, 4), (k, 0, 0)).save(path)
    rows = [Row(0, "a", images=(str(files[0]),)), Row(1, "a", images=(str(files[1]), str(files[2]))), Row(2, "a", videos=(str(files[0]),))]
    calls: list[int] = []

    def encode(row: Row) -> Cond:
        calls.append(row.id)
        return {"image": [Image.open(path).convert("RGB") for path in row.images]}

    cache = ConditionCache(tmp_path / "cache", "v1")
    assert len({cache.key(row) for row in [*rows, Row(3, "a"), Row(4, "a", images=rows[1].images[::-1])]}) == 5
    encode_rows(rows, encode, cache, progress=False)
    Image.new("RGB", (4, 4), (9, 0, 0)).save(files[2])
    conds = encode_rows(rows, encode, cache, progress=False)
    assert calls == [0, 1, 2, 1] and conds[1]["image"][1].getpixel((0, 0)) == (9, 0, 0)


def test_the_same_bytes_elsewhere_need_no_encoding(tmp_path):
    calls: list[str] = []
    for name in ("a.png", "b.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
        row = Row(0, "a", images=(str(tmp_path / name),))
        encode_rows([row], fake_encoder(calls), ConditionCache(tmp_path, "v1"), progress=False)
    assert calls == ["a"]
