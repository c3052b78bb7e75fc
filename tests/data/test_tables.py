"""Data sets that `datasets` reads: formats, columns, pictures inside tables, and what is refused."""

import datetime
import json
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from flow_factory.config.data import DataConfig
from flow_factory.data.columns import DataError
from flow_factory.data.media import check_whole
from flow_factory.data.reader import read_rows
from flow_factory.data.sources import has_table, is_table, open_table
from flow_factory.reporting.metrics import read_metrics
from tests.tiny.pipelines import saved
from tests.tiny.run import tiny, write_run
from tests.tiny.tables import PICTURE, parquet, picture, tar, written

ROWS = [{"caption": f"prompt {k}", "n": k} for k in range(5)]


def config(tmp_path: Path, place: Path, columns: Mapping[str, str] | None = None, **keys: Any) -> DataConfig:
    return DataConfig(
        dataset_dir=str(place),
        cache_dir=str(tmp_path / "cache"),
        columns=dict({"prompt": "caption"} if columns is None else columns),
        **keys,
    )


def rows(tmp_path: Path, columns: Mapping[str, Any], named: Mapping[str, str] | None = None, **keys: Any) -> Any:
    return open_table(config(tmp_path, parquet(tmp_path / "data" / "train.parquet", columns), named or {}, **keys), "train")


@pytest.mark.parametrize("form", ["parquet", "arrow", "csv", "tsv", "json"])
def test_a_file_of_each_format_has_the_same_rows(tmp_path: Path, form: str) -> None:
    data = config(tmp_path, written(tmp_path, form, ROWS))
    assert is_table(data) and not has_table(data, "test")
    table = open_table(data, "train")
    assert [(row.id, row.prompt, row.columns) for row in table] == [(k, f"prompt {k}", {"n": k}) for k in range(5)]
    assert table[3].source == f"{tmp_path}/prompts.{form}: row 3"
    assert [row.prompt for row in table[1:4:2]] == ["prompt 1", "prompt 3"] and table[-1].id == 4


def test_a_folder_of_files_has_splits_and_parts_of_them(tmp_path: Path) -> None:
    for split, n in (("train", 30), ("validation", 3)):
        parquet(tmp_path / "data" / f"{split}.parquet", {"caption": [f"{split} {k}" for k in range(n)]})
    data = config(tmp_path, tmp_path / "data", test_split="validation")
    assert has_table(data, "validation") and len(open_table(data, "validation")) == 3
    assert [row.prompt for row in open_table(data, "train[28:]")] == ["train 28", "train 29"]
    assert len(open_table(data, "train", most=7)) == 7
    with pytest.raises(DataError, match=r"data.test_split: .*/data has no split 'test', but train, validation"):
        has_table(config(tmp_path, tmp_path / "data", test_split="test"), "test")
    with pytest.raises(DataError, match=r"data.train_split: .* no split 'training', but train, validation. Did you mean 'train'"):
        open_table(config(tmp_path, tmp_path / "data", train_split="training"), "training")


def test_pictures_inside_are_taken_as_they_are_and_written_when_they_are_needed(tmp_path: Path) -> None:
    jpeg, png = picture("blue", form="JPEG"), picture("red")
    given = [{"bytes": jpeg, "path": "a.jpg"}, {"bytes": png, "path": None}, {"bytes": png, "path": "c.png"}, None]
    columns = {"prompt": ["a", "b", "c", "d"], "source": pa.array(given, PICTURE), "mask": pa.array([None, given[0], None, None], PICTURE)}
    table = rows(tmp_path, columns, {"image": "source"})
    media = tmp_path / "cache" / "media"
    assert not media.exists()
    assert [len(row.images) for row in table] == [1, 1, 1, 0] and not media.exists()
    files = [path for row in table for path in row.images]
    assert Path(files[0]).read_bytes() == jpeg and files[1] == files[2] and len(list(media.rglob("*.*"))) == 2
    assert check_whole(files[0], "here", "image") == (32, 24, 1) and files[0].endswith(".jpg")
    assert "mask" in table[1].columns and table[1].columns["mask"] == files[0] and table[0].columns["mask"] is None
    before = Path(files[0]).stat().st_mtime_ns
    assert table[0].images[0] == files[0] and Path(files[0]).stat().st_mtime_ns == before
    Path(files[0]).write_bytes(b"cut")
    assert Path(table[0].images[0]).read_bytes() == jpeg


def test_lists_of_pictures_bytes_and_names_are_files_too(tmp_path: Path) -> None:
    png = picture()
    lists = pa.array([[{"bytes": png, "path": None}] * 2, [{"bytes": None, "path": "x.png"}]], pa.list_(PICTURE))
    several = rows(tmp_path / "1", {"prompt": ["a", "b"], "refs": lists}, {"images": "refs"})
    assert [len(row.images) for row in several] == [2, 1] and several[1].images == () or list(several[1].images)[0].endswith("images/x.png")
    (one,) = rows(tmp_path / "2", {"prompt": ["a"], "jpg_0": pa.array([png], pa.binary())}, {"image": "jpg_0"})
    assert Path(one.images[0]).read_bytes() == png
    (named,) = rows(tmp_path / "3", {"prompt": ["a"], "image": ["x.png"]})
    assert named.images == (f"{tmp_path}/3/data/images/x.png",)


def test_other_columns_become_plain_values(tmp_path: Path) -> None:
    day = datetime.date(2026, 1, 2)
    columns = {
        "prompt": ["a"], "when": [datetime.datetime(2026, 1, 2, 3, 4)], "day": [day], "for": [datetime.timedelta(seconds=90)],
        "price": [Decimal("1.50")], "boxes": [[{"label": "x", "box": [1, 2, None], "on": day}]], "map": [{"a": {"b": [1.5]}}],
        "none": pa.array([None]), "float": pa.array([1.5], pa.float32()), "kind": pa.array(["x"]).dictionary_encode(),
    }  # fmt: skip
    (row,) = rows(tmp_path, columns)
    assert row.columns == {
        "when": "2026-01-02T03:04:00", "day": "2026-01-02", "for": 90.0, "price": 1.5,
        "boxes": [{"label": "x", "box": [1, 2, None], "on": "2026-01-02"}], "map": {"a": {"b": [1.5]}}, "none": None, "float": 1.5,
        "kind": "x",
    }  # fmt: skip
    json.dumps(dict(row.columns))


def test_a_webdataset_has_a_row_of_files_of_one_name(tmp_path: Path) -> None:
    png = picture()
    members = [
        (f"{k:04}.{end}", content) for k in range(3) for end, content in (("jpg", png), ("txt", b"prompt %d" % k), ("json", b'{"n": 1}'))
    ]
    data = config(tmp_path, tar(tmp_path / "shard.tar", members), {"prompt": "txt", "image": "jpg"}, test_split="train[:1]")
    table = open_table(data, "train")
    assert [(row.prompt, row.columns["json"]) for row in table] == [(f"prompt {k}", {"n": 1}) for k in range(3)]
    assert Path(table[2].images[0]).read_bytes() == png and has_table(data, data.test_split)
    assert [row.prompt for row in open_table(data, "train[:1]")] == ["prompt 0"]


def test_what_save_to_disk_has_written_is_read_without_a_decoder(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"caption": datasets.Value("string"), "image": datasets.Image()})
    whole = datasets.Dataset.from_dict({"caption": ["a", "b"], "image": [{"bytes": b"no picture", "path": None}] * 2}, features)
    whole.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=whole, test=whole.select([0])).save_to_disk(tmp_path / "two")
    (a, b) = open_table(config(tmp_path, tmp_path / "one"), "train")
    assert b.prompt == "b" and Path(a.images[0]).read_bytes() == b"no picture"
    assert len(open_table(config(tmp_path, tmp_path / "two"), "test")) == 1


@pytest.mark.parametrize(("name", "content", "said"), [
    ("x.parquet", b"hello", "Parquet file size is 5 bytes"), ("x.csv", b"prompt,b\n1,2\n1,2,3\n", "Expected 2 fields in line 3, saw 3"),
    ("x.json", b'[{"prompt": ', "x.json"), ("x.tar", b"hello", "x.tar"), ("x.arrow", b"hello", "x.arrow"),
    ("x.pkl", b"cos\nsystem\n", "is a file, but not one of .jsonl, .txt, .parquet"), ("x.csv", b"", "No columns to parse from file"),
])  # fmt: skip
def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as error:
        open_table(config(tmp_path, tmp_path / name, {}), "train")
    text = str(error.value)
    assert text.startswith("data.dataset_dir: ") and said in text and "\n" not in text and len(text) < 700, text


def test_a_folder_of_another_field_is_refused(tmp_path: Path) -> None:
    """`pandas` unpickles what it is given; a folder may also have nothing that is a table."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x.pkl").write_bytes(b"cos\nsystem\n")
    assert not is_table(config(tmp_path, tmp_path / "data"))
    for k in range(3):
        (tmp_path / "data" / f"x{k}.xml").write_text("<a/>")
    (tmp_path / "data" / "y.csv").write_text("prompt\na\n")
    with pytest.raises(DataError, match="is of the format xml; parquet, arrow, csv, json, webdataset can be read"):
        open_table(config(tmp_path, tmp_path / "data", {}), "train")


def test_a_changed_file_is_read_anew(tmp_path: Path) -> None:
    data = config(tmp_path, parquet(tmp_path / "x.parquet", {"caption": ["a"]}))
    first = open_table(data, "train")
    parquet(tmp_path / "x.parquet", {"caption": ["b", "c"]})
    assert [row.prompt for row in open_table(data, "train")] == ["b", "c"] and first[0].prompt == "a"


def test_columns_of_lines_are_renamed_alike(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "a", "prompt": "left out", "pic": "x.png", "n": 1}\n{"text": "b", "pic": null}\n')
    renamed = {"prompt": "text", "image": "pic"}
    first, second = read_rows(tmp_path, "train", columns=renamed)
    assert (first.prompt, first.images, first.columns) == ("a", (f"{tmp_path}/images/x.png",), {"n": 1}) and second.images == ()
    assert len(read_rows(tmp_path / "train.jsonl", "train", columns=renamed)) == 2
    with pytest.raises(
        DataError, match=r"train.jsonl:1: data.columns.image: no column 'picture'. Did you mean 'pic'\? There are text, prompt"
    ):
        read_rows(tmp_path, "train", columns={"prompt": "text", "image": "picture"})
    (tmp_path / "test.txt").write_text("a\n")
    with pytest.raises(DataError, match="data.columns: .*test.txt has one prompt a line and no columns"):
        read_rows(tmp_path, "test", columns=renamed)


def test_a_dot_leads_into_an_object(tmp_path: Path) -> None:
    (row,) = rows(tmp_path, {"meta": [{"caption": "a", "n": 1}]}, {"prompt": "meta.caption"})
    assert (row.prompt, row.columns) == ("a", {"meta": {"caption": "a", "n": 1}})


@pytest.mark.parametrize(("columns", "named", "said"), [
    ({"prompt": ["a", " "]}, {}, "train.parquet: row 1: 'prompt' must be a non-empty text"),
    ({"caption": ["a", None]}, {"prompt": "caption"}, "'caption' (data.columns.prompt) must be a non-empty text, not null"),
    ({"prompt": [1, 2]}, {}, "row 0: 'prompt' must be a non-empty text, not a number (1)"),
    ({"prompt": [["a"]]}, {}, "row 0: 'prompt' must be a non-empty text, not a list"),
    ({"prompt": ["a", "b\0c"]}, {}, "row 1: the prompt has a NUL character"),
    ({"prompt": ["a"], "negative_prompt": [1.5]}, {}, "row 0: 'negative_prompt' must be a text or null, not a number (1.5)"),
    ({"prompt": ["a"], "image": [["x.png"]]}, {}, "row 0: 'image' must be one file's name; a list of them is 'images'"),
    ({"prompt": ["a"], "image": [7]}, {}, "row 0: 'image' must name a file, not a number (7)"),
    ({"prompt": ["a"], "image": ["https://x/y.png"]}, {}, "is a URL; images are read from disk"),
    ({"prompt": ["a"], "source": [["x"]]}, {"image": "sorce"}, "data.columns.image: no column 'sorce'. Did you mean 'source'? There are p"),
    ({"caption": ["a"]}, {}, "no column 'prompt' among caption; say which one it is, as in data.columns: {prompt: caption}"),
    ({f"column_{k}": ["a"] for k in range(2000)}, {"prompt": "colum_77"}, "column_11, ... (2000 in all)"),
    ({"prompt": pa.array([], pa.string())}, {}, "a file without rows"),
    ({"prompt": pa.array([b"fine", b"half \xed\xa0\xbd"]).view(pa.string())}, {}, "row 1: 'prompt' is not UTF-8 at byte 6"),
    ({"prompt": ["a"], "image": pa.array([{"bytes": None, "path": None}], PICTURE)}, {}, "row 0: 'image' must name a file, not null"),
])  # fmt: skip
def test_what_a_row_may_not_have_is_one_line(tmp_path: Path, columns: Mapping[str, Any], named: Mapping[str, str], said: str) -> None:
    with pytest.raises(DataError) as error:
        [list(row.images) for row in rows(tmp_path, columns, named)]
    assert said in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 600


@pytest.mark.slow
def test_a_run_on_pictures_inside_a_table_is_the_run_on_their_files(tmp_path: Path) -> None:
    """To the bit, with pictures of several kinds, and over a second start that finds what the first has encoded."""
    exif = Image.Exif()
    exif[0x0112] = 6
    pictures = [
        picture("red", (48, 64), "JPEG", exif=exif),
        picture("blue", (40, 40), "JPEG", "CMYK"),
        picture("green", (64, 48), "PNG", "P"),
    ]
    write_run(tmp_path)
    texts = ["a red cat", "a blue dog", "a green bird"]
    (tmp_path / "data" / "images").mkdir()
    for k, content in enumerate(pictures):
        (tmp_path / "data" / "images" / f"{k}.img").write_bytes(content)
    lines = [json.dumps({"prompt": text, "image": f"{k}.img"}) + "\n" for k, text in enumerate(texts)]
    for split, some in (("train", lines), ("test", lines[:1])):
        (tmp_path / "data" / f"{split}.jsonl").write_text("".join(some))
    parquet(tmp_path / "table.parquet", {"caption": texts, "source": pa.array([{"bytes": p, "path": None} for p in pictures], PICTURE)})
    kontext = [
        f"model.model_name_or_path={saved('flux1_kontext')}",
        "model.model_type=flux1-kontext",
        "train.condition_image_size=32",
        "train.max_epochs=1",
        "train.guidance_scale=3.5",
    ]
    table = [f"data.dataset_dir={tmp_path}/table.parquet", "data.columns={prompt: caption, image: source}", "data.test_split=train[:1]"]
    metrics = []
    for name, keys in (("files", []), ("table", table), ("again", table)):
        tiny(tmp_path, *kontext, *keys, f"log.save_dir={tmp_path}/{name}", f"data.cache_dir={tmp_path}/cache_{name[0]}")()
        (file,) = (tmp_path / name).glob("*/metrics.jsonl")
        metrics.append(
            [{k: v for k, v in line.items() if k.startswith(("train/", "eval/")) and "seconds" not in k} for line in read_metrics(file)]
        )
    assert metrics[0] == metrics[1] == metrics[2] and any("train/loss" in line for line in metrics[0])
