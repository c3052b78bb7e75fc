"""The cache of encoded rows: damaged, foreign, deleted and half-written shards; fingerprints of encoders."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from flow_factory.data.cache import ConditionCache
from flow_factory.data.fingerprints import module_fingerprint, settings_fingerprint
from flow_factory.data.index import MAGIC, RECORD
from flow_factory.data.packing import SMALL
from flow_factory.data.reader import DataError
from flow_factory.types import Row
from flow_factory.utils.errors import UserError
from tests.data.encoded import encode_rows
from tests.data.rows import fake_encoder, rows_of, same, shard_of


@pytest.mark.parametrize("again", [False, True], ids=["in the run", "at a start"])
@pytest.mark.parametrize("damage", ["truncated", "emptied", "flipped", "other", "deleted"])
def test_a_damaged_shard_is_encoded_again_with_one_notice(tmp_path, caplog, damage, again):
    calls: list[str] = []
    cache, rows = ConditionCache(tmp_path, "v1"), rows_of("a", "b")
    conds = encode_rows(rows, fake_encoder(calls), cache, progress=False)
    shard = shard_of(tmp_path)
    good = shard.read_bytes()
    flipped = bytes(byte ^ 1 for byte in good)
    other = b"hello, this is none" * 99
    shard.write_bytes({"truncated": good[:9], "flipped": flipped, "other": other}.get(damage, b""))
    if damage == "deleted":
        shard.unlink()
    if again:
        conds = encode_rows(rows, fake_encoder(calls), ConditionCache(tmp_path, "v1"), progress=False)
    for _ in range(2):
        assert all(map(same, conds, map(fake_encoder([]), rows)))
    assert calls == ["a", "b"] * 2
    cut = damage not in ("flipped", "other")  # at a start, what lies behind a shard's end is as if it had never been written
    assert [("it is damaged:" in r.message, r.message.count(str(shard))) for r in caplog.records] == [(not cut, 1)] * (not cut or not again)
    caplog.clear()
    conds = encode_rows(rows, fake_encoder(calls), ConditionCache(tmp_path, "v1"), progress=False)
    assert all(map(same, conds, map(fake_encoder([]), rows))) and calls == ["a", "b"] * 2, "what was encoded again was kept"
    assert not caplog.records, "and is taken without a word"


def test_a_row_under_another_rows_key_is_noticed(tmp_path, caplog):
    calls, rows = [], rows_of("a", "b")
    encode_rows(rows, fake_encoder(calls), ConditionCache(tmp_path, "v1"), progress=False)
    index = shard_of(tmp_path).with_suffix(".index")
    records = np.fromfile(index, RECORD, offset=len(MAGIC))
    records[["high", "low"]] = records[["high", "low"]][::-1].copy()
    index.write_bytes(MAGIC + records.tobytes())
    assert [c["note"] for c in encode_rows(rows, fake_encoder(calls), ConditionCache(tmp_path, "v1"), progress=False)] == ["a", "b"]
    assert calls == ["a", "b"] * 2 and "is damaged" in caplog.text


@pytest.mark.skipif(os.getuid() != 0, reason="needs another user to be")
def test_a_cache_of_another_user_is_one_line(tmp_path, monkeypatch):
    (row,) = rows_of("a")
    cache = ConditionCache(tmp_path / "cache", "v1")
    before = os.umask(0o027)
    try:
        encode_rows([row], fake_encoder([]), cache, progress=False)
    finally:
        os.umask(before)
    assert shard_of(tmp_path).stat().st_mode & 0o777 == 0o640, "the umask rules"
    tmp_path.chmod(0o755)
    os.seteuid(65534)
    try:
        for other in (row, Row(1, "b")):
            with pytest.raises(UserError, match=r"^data.cache_dir: .*: Permission denied; choose another folder, or let all who share"):
                encode_rows([other], fake_encoder([]), ConditionCache(tmp_path / "cache", "v1"), progress=False)
    finally:
        os.seteuid(0)


def test_settings_are_what_a_part_does_and_not_where_it_is(flux_folder, tmp_path):
    moved = shutil.copytree(flux_folder, tmp_path / "moved")
    words = json.loads((moved / "tokenizer" / "tokenizer.json").read_text())
    load = lambda folder: settings_fingerprint(CLIPTokenizer.from_pretrained(folder / "tokenizer"))  # noqa: E731
    assert load(moved) == load(flux_folder)
    vocabulary = words["model"]["vocab"]
    a, b = sorted(vocabulary)[10:12]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    (moved / "tokenizer" / "tokenizer.json").write_text(json.dumps(words))
    assert load(moved) != load(flux_folder)
    configs = [
        CLIPTextModel(CLIPTextConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_attention_heads=2, num_hidden_layers=1, **size))
        for size in ({}, {}, {"layer_norm_eps": 0.1})
    ]
    assert len({settings_fingerprint(model) for model in configs}) == 2


def test_a_file_that_was_deleted_since_the_start_is_named(tmp_path):
    picture = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(picture)
    row, cache = Row(0, "x", images=(str(picture),), source="train.jsonl:3"), ConditionCache(tmp_path / "cache", "")
    encode_rows([row], fake_encoder([]), cache)
    picture.unlink()
    with pytest.raises(DataError, match=f"train.jsonl:3: {picture} cannot be read: No such file or directory"):
        encode_rows([row], fake_encoder([]), cache)


def test_a_start_looks_up_rows_and_reads_none(tmp_path, caplog):
    calls, cache, rows = [], ConditionCache(tmp_path, "v1"), rows_of("a", "b")
    encode_rows(rows, fake_encoder(calls), cache, progress=False)
    path = shard_of(tmp_path)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    conds = encode_rows(rows, fake_encoder(calls), ConditionCache(tmp_path, "v1"), progress=False)
    assert calls == ["a", "b"] and not caplog.records
    assert [c["note"] for c in (*conds, *conds)] == ["a", "b"] * 2
    assert calls == ["a", "b", "b"] and len(caplog.records) == 1 and "is damaged" in caplog.text


@pytest.mark.parametrize("obstacle", ["gone", "a file"])
def test_a_cache_that_goes_while_the_run_goes_on_costs_a_line(tmp_path, caplog, obstacle):
    calls, cache, rows = [], ConditionCache(tmp_path / "cache", "v1"), rows_of("a", "b")
    conds = encode_rows(rows, fake_encoder(calls), cache, progress=False)
    shutil.rmtree(tmp_path / "cache")
    if obstacle == "a file":
        (tmp_path / "cache").touch()
    for _ in range(2):
        assert [c["note"] for c in conds] == ["a", "b"]
    assert calls == ["a", "b"] * 2 if obstacle == "gone" else len(calls) == 6
    assert [r.message.count("encodes rows again") for r in caplog.records] == [0] + [1] * (obstacle == "a file")


@pytest.mark.parametrize("step", range(4))
def test_a_writer_killed_half_way_leaves_no_row(tmp_path, monkeypatch, step):
    """At each of the writes of a row: its large tensor, the two pieces of the row itself, its records."""
    cond = {"large": torch.ones(SMALL), "note": "a"}
    cache, calls, rows, write = ConditionCache(tmp_path, "v1"), [], rows_of("b", "a"), os.pwrite
    cache.put(rows[0], {})

    def killed(*given):
        calls.append(given)
        if len(calls) > step:
            write(given[0], given[1][: len(given[1]) // 2], given[2])
            raise KeyboardInterrupt
        return write(*given)

    monkeypatch.setattr(os, "pwrite", killed)
    with pytest.raises(KeyboardInterrupt):
        cache.put(rows[1], cond)
    monkeypatch.undo()
    later = ConditionCache(tmp_path, "v1")
    assert later.get(rows[1]) is None and later.get(rows[0]) == {}
    assert same(encode_rows(rows, lambda row: cond, later, progress=False)[1], cond) and same(later.get(rows[1]), cond)


def test_fingerprint_sees_names_shapes_dtypes_bytes_and_buffers():
    def fresh() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).bfloat16()

    base = module_fingerprint(fresh())
    assert module_fingerprint(fresh()) == base
    nudged, buffered, renamed = fresh(), fresh(), nn.Sequential()
    with torch.no_grad():
        nudged[0].weight.view(torch.int16)[0, 0] ^= 1
    buffered[1].running_mean += 1
    for k, part in enumerate(fresh()):
        renamed.add_module(f"part{k}", part)
    assert len({base, *map(module_fingerprint, (nudged, buffered, renamed, fresh().half()))}) == 5
