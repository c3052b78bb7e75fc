"""The data set: bad files are named by line, the order is the same on any number of processes, every row is encoded once."""

import json
import logging
import os
import shutil
import subprocess
import sys
import tracemalloc
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import flow_factory.data.fingerprints as fingerprints
from flow_factory.data import reader
from flow_factory.data.cache import ConditionCache
from flow_factory.data.fingerprints import module_fingerprint, settings_fingerprint
from flow_factory.data.index import MAGIC, RECORD
from flow_factory.data.lines import row_of
from flow_factory.data.order import EpochGroup, Order
from flow_factory.data.packing import SMALL
from flow_factory.data.reader import DataError, read_rows
from flow_factory.types import Cond, Row
from flow_factory.utils.errors import RowError, UserError
from tests.data.encoded import encode_rows


def write(folder: Path, name: str, content: str | bytes) -> Path:
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


# reading


def test_jsonl_keeps_every_other_column(tmp_path):
    rows = read_rows(
        write(tmp_path, "train.jsonl", '{"prompt": "a", "negative_prompt": "b", "kind": "x", "n": [1]}\n\n{"prompt": "c"}'), "train"
    )
    where = tmp_path / "train.jsonl"
    assert list(rows) == [Row(0, "a", "b", {"kind": "x", "n": [1]}, source=f"{where}:1"), Row(1, "c", source=f"{where}:3")]


def test_txt_with_bom_and_crlf(tmp_path):
    rows = read_rows(write(tmp_path, "test.txt", b"\xef\xbb\xbfein W\xc3\xbcrfel \r\n\r\n  two\r\n"), "test")
    assert [r.prompt for r in rows] == ["ein Würfel", "two"]


def test_jsonl_with_bom_and_crlf_and_a_line_separator_inside(tmp_path):
    content = b"\xef\xbb\xbf" + '{"prompt": "a\u2028b"}\r\n{"prompt": "c"}\r\n'.encode()
    assert [r.prompt for r in read_rows(write(tmp_path, "train.jsonl", content), "train")] == ["a\u2028b", "c"]


def test_repeated_lines_stay_rows_and_are_counted_in_one_notice(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        rows = read_rows(write(tmp_path, "train.txt", "a\nb\na\na\n"), "train")
    assert [(r.id, r.prompt) for r in rows] == [(0, "a"), (1, "b"), (2, "a"), (3, "a")]
    (record,) = caplog.records
    assert "2 of 4 rows repeat" in record.getMessage()


def test_max_size_takes_the_first_rows(tmp_path):
    assert [r.prompt for r in read_rows(write(tmp_path, "train.txt", "a\n\nb\nc\n"), "train", max_size=2)] == ["a", "b"]


BAD = {
    "broken json": ("train.jsonl", '{"prompt": "a"}\n\n{"prompt": \n', "train.jsonl:3: not JSON at column"),
    "not an object": ("train.jsonl", '["a"]\n', "train.jsonl:1: a list where an object belongs"),
    "a bare number": ("train.jsonl", "3\n", "train.jsonl:1: a number (3) where"),
    "no prompt": ("train.jsonl", '{"prompt": "a"}\n{"text": "b"}\n', "train.jsonl:2: no 'prompt' among the columns text"),
    "misspelt prompt": ("train.jsonl", '{"Prompts": "b"}\n', "is it 'Prompts'?"),
    "no columns": ("train.jsonl", "{}\n", "train.jsonl:1: no 'prompt' among the columns (none)"),
    "prompt is a number": (
        "train.jsonl",
        '{"prompt": 3}\n',
        "train.jsonl:1: 'prompt' must be a non-empty text, not a number (3)",
    ),
    "prompt is null": ("train.jsonl", '{"prompt": null}\n', "not null"),
    "prompt is a list": ("train.jsonl", '{"prompt": ["a"]}\n', "not a list"),
    "prompt is empty": ("train.jsonl", '{"prompt": ""}\n', "not an empty text"),
    "prompt is blank": ("train.jsonl", '{"prompt": "  "}\n', 'not a text ("  ")'),
    "negative is a number": (
        "train.jsonl",
        '{"prompt": "a", "negative_prompt": true}\n',
        "train.jsonl:1: 'negative_prompt' must be a text or null, not true",
    ),
    "not utf-8": ("train.txt", b"a\nb\xe9\n", "train.txt:2: not UTF-8 at byte 2"),
    "utf-16": ("train.txt", "a cube\n".encode("utf-16"), "looks like UTF-16"),
    "empty": ("train.jsonl", "", 'no line with a prompt in it; write lines such as {"prompt"'),
    "blank lines only": ("train.txt", "\n \n", "write a prompt a line"),
    "half an emoji": ("train.jsonl", r'{"prompt": "a \ud83d"}', r"train.jsonl:1: \ud83d is half of a character"),
    "half an emoji in a list": ("train.jsonl", r'{"prompt": "a", "tags": [{"x": "\udc00"}]}', r"train.jsonl:1: \udc00 is half of"),
    "half an emoji in a name": ("train.jsonl", r'{"prompt": "a", "\ud83d": 1}', r"train.jsonl:1: \ud83d is half of"),
    "half an emoji in a file's name": ("train.jsonl", r'{"prompt": "a", "image": "\ud83d.png"}', r"train.jsonl:1: \ud83d is half of"),
    "a number without end": ("train.jsonl", f'{{"prompt": "a", "n": {"9" * 5000}}}', "train.jsonl:1: a number has more than 4,300 digits"),
    "lists without end": ("train.jsonl", f'{{"prompt": "a", "n": {"[" * 99}{"]" * 99}}}', "train.jsonl:1: lists and objects are nested"),
    "lists beyond recursion": ("train.jsonl", "[" * 100_000, "train.jsonl:1: lists and objects are nested more than 64 deep"),
    "a column twice": ("train.jsonl", '{"prompt": "a", "prompt": "b"}', "train.jsonl:1: 'prompt' is written twice; keep one"),
    "a column twice inside": ("train.jsonl", '{"prompt": "a", "x": [{"y": 1, "y": 2}]}', "train.jsonl:1: 'y' is written twice"),
    "nul": ("train.jsonl", r'{"prompt": "a\u0000"}', "train.jsonl:1: the prompt has a NUL character"),
    "nul in a file's name": ("train.jsonl", r'{"prompt": "a", "image": "a\u0000.png"}', "is not a file name: it has a NUL character"),
    "utf-16 without a mark": ("train.txt", "a cube\n".encode("utf-16-le"), "train.txt:1: a NUL character (it looks like UTF-16)"),
    "a line without end": ("train.txt", "a\n" + "b" * ((1 << 24) + 1), "train.txt:2: a line of more than 16 MB"),
    "other split": ("test.jsonl", '{"prompt": "a"}\n', "no train split in"),
    "other suffix": ("train.json", "[]", "which has train.json; it needs train.jsonl (lines such as"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_named_by_line_and_cause(tmp_path, case):
    name, content, message = BAD[case]
    with pytest.raises(DataError) as error:
        read_rows(write(tmp_path, name, content), "train")
    assert message in str(error.value) and str(tmp_path) in str(error.value)


def test_what_json_may_say_is_taken_as_it_is(tmp_path):
    """Also what only Python writes: it can stand in columns that go to rewards, and nowhere else."""
    line = r'{"prompt": "a \ud83d\ude00", "score": NaN, "most": Infinity, "n": 1' + "0" * 400 + r', "deep": [[[1]]], "nul": "\u0000"}'
    (row,) = read_rows(write(tmp_path, "train.jsonl", line), "train")
    assert row.prompt == "a \U0001f600" and row.columns["score"] != row.columns["score"] and row.columns["n"] == 10**400


def test_files_that_were_joined_have_marks_inside(tmp_path):
    assert [r.prompt for r in read_rows(write(tmp_path, "train.txt", b"a\n\xef\xbb\xbfb\n"), "train")] == ["a", "b"]


@pytest.mark.parametrize(("kind", "said"), [
    ("pipe", "train.jsonl: a pipe, where a file belongs"), ("folder", "train.jsonl: a folder, where a file belongs"),
    ("link to nothing", "train.jsonl: No such file or directory"), ("loop", "train.jsonl: Too many levels of symbolic links"),
    ("file as folder", "is not a folder. data.dataset_dir names a folder"), ("long", "File name too long"),
])  # fmt: skip
def test_a_data_set_that_is_no_file_is_one_line(tmp_path, kind, said):
    folder, path = tmp_path, tmp_path / "train.jsonl"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "file as folder":
        folder = tmp_path / "train"
        folder.touch()
    elif kind == "long":
        folder = tmp_path / ("n" * 300)
    else:
        path.symlink_to(path if kind == "loop" else tmp_path / "gone")
    with pytest.raises(DataError) as error:
        read_rows(folder, "train")
    assert said in str(error.value) and "\n" not in str(error.value)


def test_both_files_are_an_error(tmp_path):
    write(tmp_path, "train.txt", "a\n")
    with pytest.raises(DataError, match="both train.jsonl and train.txt"):
        read_rows(write(tmp_path, "train.jsonl", '{"prompt": "a"}\n'), "train")


def test_a_missing_folder_lists_what_is_beside_it(tmp_path):
    (tmp_path / "shapes").mkdir()
    with pytest.raises(DataError, match="has shapes/"):
        read_rows(tmp_path / "shape" / "deep", "train")


def test_reading_needs_no_torch():
    code = "import sys, flow_factory.data.reader; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


def test_a_row_is_made_when_it_is_asked_for(tmp_path, monkeypatch):
    lines = [b'{"prompt": "a", "image": "x.png"}\r\n', b"\n", b"\xef\xbb\xbf  \n", '{"prompt": "b\u2028ü", "n": [1]}'.encode()]
    seen: list[Row] = []
    rows = read_rows(write(tmp_path, "train.jsonl", b"".join(lines)), "train", checks=[seen.append, seen.append])
    where, picture = tmp_path / "train.jsonl", str(tmp_path / "images" / "x.png")
    wanted = [Row(0, "a", images=(picture,), source=f"{where}:1"), Row(1, "b\u2028ü", columns={"n": [1]}, source=f"{where}:4")]
    assert seen == [wanted[0], wanted[0], wanted[1], wanted[1]]  # each look sees every row once
    made: list[int] = []
    monkeypatch.setattr(reader, "row_of", lambda k, *rest: (made.append(k), row_of(k, *rest))[1])
    assert len(rows) == 2 and not made
    assert rows[-1] == wanted[1] and made == [1]
    part = rows[::-1]
    assert len(part) == 2 and made == [1] and list(part) == wanted[::-1] and list(part[1:]) == [wanted[0]] and part[-1] == wanted[0]
    with pytest.raises(IndexError):
        rows[2]


def test_rows_take_little_memory(tmp_path):
    write(tmp_path, "train.jsonl", "".join(json.dumps({"prompt": f"{k} " + "x" * 2000}) + "\n" for k in range(2000)))
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        rows = read_rows(tmp_path, "train")
        held = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert held < 100 * len(rows)


OTHER = {
    "a line": (lambda p: p.write_bytes(p.read_bytes().replace(b"two", b"2wo")), [0, 2], "train.jsonl:2: the line has changed"),
    "half a letter": (lambda p: p.write_bytes(p.read_bytes().replace(b"two", b"t\xffo")), [0, 2], "train.jsonl:2: the line has changed"),
    "one before": (lambda p: p.write_bytes(b'{"prompt": "new"}\n' + p.read_bytes()), [], "train.jsonl:2: the line has changed"),
    "cut short": (lambda p: p.write_bytes(p.read_bytes()[:30]), [0], "train.jsonl:2: the line has changed"),
    "one after": (lambda p: p.write_bytes(p.read_bytes() + b'{"prompt": "new"}\n'), [0, 1, 2], None),
    "another file": (lambda p: (p.with_name("x").write_text("nothing"), p.with_name("x").replace(p)), [0, 1, 2], None),
    "none": (lambda p: p.unlink(), [0, 1, 2], None),
}


@pytest.mark.parametrize("how", OTHER)
def test_rows_that_are_edited_while_the_run_goes_on_are_noticed(tmp_path, monkeypatch, caplog, how):
    monkeypatch.setattr(reader, "CHANGE_CHECK_S", 0)
    write(tmp_path, "train.jsonl", "".join(f'{{"prompt": "{word} dogs"}}\n' for word in ("one", "two", "six")))
    rows = read_rows(tmp_path, "train")
    before = list(rows)
    assert not caplog.records
    edit, same, said = OTHER[how]
    edit(tmp_path / "train.jsonl")
    assert [rows[k] for k in same] == [before[k] for k in same]
    if said is not None:
        with pytest.raises(RowError, match=said):
            rows[1]
    changes = [r.getMessage() for r in caplog.records]
    assert changes == [f"{tmp_path}/train.jsonl has changed; this run goes on with the rows that it began with"] * (how != "none")


# condition files


def test_condition_files_start_at_their_folders(tmp_path):
    lines = [
        '{"prompt": "a", "image": "x.png", "kind": 3}',
        '{"prompt": "b", "images": ["x.png", "/abs/y.png"], "video": "deep/v.mp4"}',
        '{"prompt": "c", "image": null, "images": [], "videos": ["u.mp4", "v.mp4"]}',
    ]
    write(tmp_path, "train.jsonl", "\n".join(lines))
    rows = read_rows(tmp_path, "train")
    assert [r.images for r in rows] == [(f"{tmp_path}/images/x.png",), (f"{tmp_path}/images/x.png", "/abs/y.png"), ()]
    assert [r.videos for r in rows] == [(), (f"{tmp_path}/videos/deep/v.mp4",), (f"{tmp_path}/videos/u.mp4", f"{tmp_path}/videos/v.mp4")]
    assert [r.columns for r in rows] == [{"kind": 3}, {}, {}] and rows[2].source == f"{tmp_path}/train.jsonl:3"
    elsewhere = read_rows(tmp_path, "train", image_dir="/i", video_dir=tmp_path)
    assert (elsewhere[0].images, elsewhere[1].videos) == (("/i/x.png",), (f"{tmp_path}/deep/v.mp4",))


@pytest.mark.parametrize(("columns", "message"), [
    ('"image": "a", "images": ["b"]', "both 'image' and 'images'; keep 'image' for one file"),
    ('"image": ["a"]', "'image' must be one file's name; a list of them is 'images'"),
    ('"image": 3', "'image' must name a file, not a number (3)"),
    ('"image": ""', "'image' must name a file, not an empty text"),
    ('"images": "a.png"', "'images' must be a list of file names, not a text (\"a.png\"); one file's name is 'image'"),
    ('"images": ["a.png", null]', "'images' must name a file, not null"),
    ('"video": {"a": 1}', "'video' must name a file, not an object"),
    ('"videos": true', "'videos' must be a list of file names, not true"),
    ('"image": "https://x.org/a.png"', "https://x.org/a.png is a URL; images are read from disk"),
])  # fmt: skip
def test_wrong_condition_columns_are_named_by_line(tmp_path, columns, message):
    with pytest.raises(DataError) as error:
        read_rows(write(tmp_path, "train.jsonl", '{"prompt": "a"}\n{"prompt": "a", ' + columns + "}\n"), "train")
    assert str(error.value).startswith(f"{tmp_path}/train.jsonl:2: ") and message in str(error.value)


# order


@pytest.mark.parametrize(("num_rows", "per_epoch"), [(10, 4), (8, 8), (3, 8), (7, 3), (13, 12), (1, 2)])
def test_every_row_comes_up_once_a_cycle(num_rows, per_epoch):
    stream = [s.row for epoch in range(6 * num_rows) for s in Order((num_rows,), per_epoch, 0).epoch(epoch)]
    cycles = [stream[k : k + num_rows] for k in range(0, len(stream), num_rows)]
    assert all(sorted(cycle) == list(range(num_rows)) for cycle in cycles)
    assert num_rows < 7 or len({tuple(c) for c in cycles}) > 1


@pytest.mark.parametrize(("num_rows", "per_epoch"), [(10, 4), (10, 8), (9, 9), (13, 12), (100, 48), (11, 7)])
def test_no_epoch_has_a_row_twice(num_rows, per_epoch):
    for seed in range(3):
        for epoch in range(3 * num_rows):
            rows = [s.row for s in Order((num_rows,), per_epoch, seed).epoch(epoch)]
            assert len(set(rows)) == per_epoch


def test_every_row_is_as_likely_at_every_place():
    counts = torch.zeros(10, 10)
    for seed in range(400):
        stream = [s.row for epoch in range(2, 5) for s in Order((10,), 8, seed).epoch(epoch)]
        for place, row in enumerate(stream[4:14]):  # the second cycle, which an epoch enters half-way
            counts[place, row] += 1
    assert (counts - 40).abs().max() < 6 * 40**0.5


@pytest.mark.parametrize(("num_rows", "per_epoch", "epochs"), [(10, 3, 0), (10, 3, 1), (10, 3, 3), (10, 3, 4), (4, 6, 1), (7, 7, 2)])
def test_the_rows_of_some_epochs_are_known_before(num_rows, per_epoch, epochs):
    there = {group.row for epoch in range(epochs) for group in Order((num_rows,), per_epoch, 3).epoch(epoch)}
    assert Order((num_rows,), per_epoch, 3).drawn(epochs) == there


def test_the_order_is_kept_between_versions():
    """A run that is resumed with another numpy must go on as it began."""
    assert Order((10,), 4, seed=42).epoch(3) == [EpochGroup(0, 6), EpochGroup(1, 2), EpochGroup(2, 4), EpochGroup(3, 3)]


def test_the_order_depends_on_seed_and_epoch_alone():
    torch.manual_seed(0)
    first = Order((50,), 10, 1).epoch(7)
    state = torch.get_rng_state()
    assert Order((50,), 10, 1).epoch(7) == first != Order((50,), 10, 2).epoch(7)
    assert torch.equal(state, torch.get_rng_state())


# cache


def fake_encoder(calls: list[str]):
    def encode(row: Row) -> Cond:
        calls.append(row.prompt)
        return {"prompt_embeds": torch.full((1, 3), float(len(row.prompt))), "note": row.prompt}

    return encode


def rows_of(*prompts: str) -> list[Row]:
    return [Row(k, p) for k, p in enumerate(prompts)]


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


def raw(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(raw(a), raw(b))
    if isinstance(a, Image.Image):
        return b.mode == "RGB" and a.size == b.size and a.tobytes() == b.tobytes()
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    return type(a) is type(b) and a == b


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


def shard_of(folder: Path) -> Path:
    """The one that there is."""
    (shard,) = folder.rglob("*.shard")
    return shard


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
