"""Rows as they are read: bad files are named by line, and so are wrong columns of condition files."""

import json
import logging
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from flow_factory.data import reader
from flow_factory.data.lines import row_of
from flow_factory.data.reader import DataError, read_rows
from flow_factory.types import Row
from flow_factory.utils.errors import RowError


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
    "prompt is a number": ("train.jsonl", '{"prompt": 3}\n', "train.jsonl:1: 'prompt' must be a non-empty text, not a number (3)"),
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


def test_a_misspelt_data_set_is_told_its_neighbour(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sets" / "shapes").mkdir(parents=True)
    write(tmp_path / "sets" / "shapes", "train.txt", "a\n")
    write(tmp_path / "sets", "words.txt", "a\n")
    pairs = (("sets/shape", "sets/shapes"), ("sets/word.txt", "sets/words.txt"), ("set", "sets"), ("sets/zz", None), ("no/zz", None))
    for given, meant in pairs:
        with pytest.raises(DataError) as error:
            read_rows(Path(given), "train")
        assert f"no data set folder {given}; " in str(error.value)
        assert ("Did you mean" in str(error.value)) == (meant is not None)
        assert meant is None or f". Did you mean '{meant}'? data.dataset_dir names" in str(error.value)


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
