"""Files of rows for arguments of the pipeline's call: which there may be, and where else they show."""

from pathlib import Path
from typing import Any

import diffusers
import pyarrow as pa
import pytest
from PIL import Image

from flow_factory.check import check
from flow_factory.commands.data import main as data_command
from flow_factory.config import ConfigError, load_config
from flow_factory.data.columns import DataError
from flow_factory.data.inputs import condition_files, open_inputs
from flow_factory.data.reader import read_rows
from flow_factory.data.thumbnails import condition_pictures
from flow_factory.reporting.pictures import before_after_sheet, contact_sheet
from flow_factory.runs.identity import DataFingerprint
from flow_factory.runs.rows import read_training
from flow_factory.types import Sample
from tests.data.inputs import COLUMNS, STRIPES, media, refused, row_of, with_pipeline
from tests.tiny.run import tiny, write_rows
from tests.tiny.tables import PICTURE, parquet, picture

# -- columns --------------------------------------------------------------------------------------------------------------------------


def test_rows_name_files_for_arguments_and_open_them(tmp_path: Path) -> None:
    media(tmp_path)
    full = {
        "prompt": "a",
        "image": "red.png",
        "area": "mask.png",
        "edges": ["green.png", "red.png"],
        "pose": "walk.mp4",
        "tune": "tune.wav",
    }
    write_rows(tmp_path / "train.jsonl", [full, {"prompt": "b", "area": None, "edges": [], "pose": None, "tune": None, "other": 1}])
    row, bare = read_rows(tmp_path, "train", columns=COLUMNS)
    images = tmp_path / "images"
    assert row.image_inputs == {"mask_image": (f"{images}/mask.png",), "control_image": (f"{images}/green.png", f"{images}/red.png")}
    assert [kind for _, kind in condition_files(row)] == ["image", "image", "image", "mask", "video", "audio"]
    assert not row.columns and bare.columns == {"other": 1} and condition_files(bare) == []
    got = open_inputs(row)
    assert [(p.mode, p.getpixel((0, 0))) for p in got["control_image"]] == [("RGB", (0, 128, 0)), ("RGB", (255, 0, 0))]
    assert got["mask_image"][0].mode == "L" and got["mask_image"][0].tobytes() == STRIPES.tobytes()
    assert [len(frames) for frames in got["pose_video"]] == [3]
    assert got["src_audio"][0].samples.shape == (2, 4000) and got["src_audio"][0].sample_rate == 8000
    moved = read_rows(tmp_path, "train", columns=COLUMNS, audio_dir="/elsewhere")[0]
    assert moved.audio_inputs == {"src_audio": ("/elsewhere/tune.wav",)}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (7, "'area' (data.columns.mask_image) must name a file, not a number (7)"),
        (["mask.png", ""], "'area' (data.columns.mask_image) must name a file, not an empty text"),
        ("http://a/b.png", "'area' (data.columns.mask_image): http://a/b.png is a URL; images are read from disk"),
    ],
)
def test_what_names_no_file_is_refused(tmp_path: Path, value: Any, said: str) -> None:
    write_rows(tmp_path / "train.jsonl", [{"prompt": "a", "area": value}])
    assert said in refused(lambda: read_rows(tmp_path, "train", columns={"mask_image": "area"}))


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"control_image": "x"}, "no known column is called \"control_image\""),
        ({"mask_imag": "x"}, "no known column is called \"mask_imag\". Did you mean 'mask_image'?"),
        ({"strength": "x"}, "no known column is called \"strength\""),
    ],
)  # fmt: skip
def test_a_name_that_the_pipeline_does_not_take_is_refused_with_those_it_takes(tmp_path: Path, columns: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(with_pipeline(tmp_path, "FluxInpaintPipeline", **columns))
    text = str(error.value)
    assert said in text and "tiny.yaml:" in text and text.count("\n") == 0
    assert "arguments of FluxInpaintPipeline for pictures, videos and sounds: image, mask_image, " in text


def test_a_pipeline_that_is_not_known_yet_must_be_named(tmp_path: Path) -> None:
    file = with_pipeline(tmp_path, "FluxInpaintPipeline", mask_image="area")
    assert load_config(file).data.columns == {"mask_image": "area"}
    file.write_text(file.read_text().replace("  max_sequence_length: 16\n", ""))
    with pytest.raises(ConfigError, match="data.columns: mask_image cannot be looked for .*name.*model.pipeline_class"):
        load_config(file, ["model.model_name_or_path=owner/name"])
    named = load_config(file, ["model.model_name_or_path=owner/name", "model.pipeline_class=FluxInpaintPipeline"])
    assert named.data.columns == {"mask_image": "area"}


def test_media_of_the_call_are_columns(tmp_path: Path) -> None:
    file = with_pipeline(tmp_path, "FluxInpaintPipeline")
    with pytest.raises(ConfigError, match=r"train.mask_image: cannot be set: images, masks, videos and sounds are columns .*data.columns"):
        load_config(file, ["train.mask_image=x"])


@pytest.mark.skipif(not hasattr(diffusers, "Kandinsky6TI2VAPipeline"), reason="of diffusers 0.42")
def test_a_switch_that_is_named_like_a_medium_is_an_argument(tmp_path: Path) -> None:
    file = with_pipeline(tmp_path, "FluxInpaintPipeline")
    sound = ["model.pipeline_class=Kandinsky6TI2VAPipeline", "train.num_frames=5"]
    assert load_config(file, [*sound, "train.sample_audio=false"]).train.call["sample_audio"] is False


def test_a_family_that_hands_over_no_further_inputs_refuses_them(tmp_path: Path) -> None:
    file = with_pipeline(tmp_path, "FluxInpaintPipeline", ip_adapter_image="x")
    with pytest.raises(ConfigError, match=r"data.columns: ip_adapter_image is not a known column, and flux1 takes no others; write"):
        load_config(file, ["model.model_type=flux1"])


# -- tables, several data sets, commands ----------------------------------------------------------------------------------------------


# tables, several data sets, commands
def test_files_inside_a_table_are_written_when_they_are_needed(tmp_path: Path) -> None:
    areas = pa.array([{"bytes": picture("white", (4, 4)), "path": None}, None], PICTURE)
    edges = pa.array([[{"bytes": picture("red"), "path": None}] * 2] * 2, pa.list_(PICTURE))
    parquet(tmp_path / "data" / "train.parquet", {"prompt": ["a", "b"], "area": areas, "edges": edges})
    columns = "{mask_image: area, ip_adapter_image: edges}"
    places = [f"data.dataset_dir={tmp_path}/data", f"data.cache_dir={tmp_path}/cache", f"data.columns={columns}"]
    config = load_config(with_pipeline(tmp_path, "FluxInpaintPipeline"), places)
    (tmp_path / "data" / "train.jsonl").unlink()
    (tmp_path / "data" / "test.jsonl").unlink()
    first, second = read_training(config, lambda dataset: [DataFingerprint()])
    assert not (tmp_path / "cache" / "media").exists()
    assert (
        first.inside
        and first.image_inputs.keys() == {"mask_image", "ip_adapter_image"}
        and second.image_inputs.keys() == {"ip_adapter_image"}
    )
    assert open_inputs(first)["mask_image"][0].getextrema() == (255, 255)
    assert repr(first) == repr(read_training(config, lambda dataset: [])[0]), "a run that goes on compares rows by this"


def test_each_of_several_data_sets_has_its_own_columns(tmp_path: Path) -> None:
    media(tmp_path)
    write_rows(tmp_path / "one.jsonl", [{"prompt": "a", "image": "red.png", "area": "mask.png"}])
    write_rows(tmp_path / "two.jsonl", [{"prompt": "a", "image": "red.png", "where": "mask.png"}])
    sets = [f"{{name: {name}, dataset_dir: {tmp_path}/{name}.jsonl, columns: {{mask_image: {column}}}, train: {{}}}}"
            for name, column in (("one", "area"), ("two", "where"))]  # fmt: skip
    file = with_pipeline(tmp_path, "FluxInpaintPipeline")
    file.write_text(file.read_text().replace(f"  dataset_dir: {tmp_path}/data\n", ""))
    rows = read_training(load_config(file, [f"data.datasets=[{', '.join(sets)}]"]), lambda dataset: [])
    assert [(row.dataset, tuple(row.image_inputs), dict(row.columns)) for row in rows] == [
        ("one", ("mask_image",), {}),
        ("two", ("mask_image",), {}),
    ]
    wrong = sets[1].replace("mask_image", "mask_video")
    with pytest.raises(ConfigError, match=r"data.datasets.1.columns: no known column is called .mask_video.*FluxInpaintPipeline"):
        load_config(file, [f"data.datasets=[{sets[0]}, {wrong}]"])


def test_show_and_check_tell_of_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = media(tmp_path / "data")
    file = with_pipeline(tmp_path, "FluxInpaintPipeline", mask_image="area")
    write_rows(folder / "train.jsonl", [{"prompt": "a", "image": "red.png", "area": "mask.png", "tune": "tune.wav"}] * 2)
    (folder / "test.jsonl").unlink()
    assert "condition files, all of each decoded: 1 images, 1 masks, 0 videos" in check(load_config(file, ["model.model_type=diffusers"]))
    columns = ["--columns", "mask_image=area", "src_audio=tune"]
    assert data_command(["show", str(folder), *columns, "--sheet", str(tmp_path / "sheet.png")]) == 0
    out = capsys.readouterr().out
    assert "masks: 1; width 4; height 4" in out and "sounds: 1; seconds 0; Hz 8000; channels 2" in out
    assert [line.split()[:4] for line in out.splitlines() if line.startswith(("mask_image", "src_audio"))] == [
        ["mask_image", "1", "file", "100"], ["src_audio", "1", "file", "100"],
    ]  # fmt: skip
    assert "contact sheet" in out and "4 pictures" in out
    assert data_command(["show", str(folder), "--columns", "strength=area"]) == 2
    assert 'no known column is called "strength"' in capsys.readouterr().err
    (folder / "images" / "mask.png").unlink()
    with pytest.raises(DataError, match=r"train.jsonl:1: .*mask.png: no such mask"):
        tiny(tmp_path)


def test_a_sheet_shows_the_conditions_beside_the_sample(tmp_path: Path) -> None:
    folder = media(tmp_path)
    red, green = (str(folder / "images" / f"{color}.png") for color in ("red", "green"))
    row = row_of(
        images=(red,), image_inputs={"control_image": (green,)}, audio_inputs={"src_audio": (str(folder / "audios" / "tune.wav"),)}
    )
    (first, second), gone = condition_pictures(row), condition_pictures(row_of(images=("gone.png",)))
    assert (first.getpixel((0, 0)), second.getpixel((0, 0))) == ((255, 0, 0), (0, 128, 0)) and len(gone) == 1
    sample = Sample("a", Image.new("RGB", (200, 200), "blue"), {"r": 1.0}, conditions=(first, second))
    for sheet in (contact_sheet([sample]), before_after_sheet([sample], [sample])):
        colors = [set(sheet.crop(box).get_flattened_data()) for box in ((0, 0, 128, sheet.height), (131, 0, sheet.width, sheet.height))]
        assert {(255, 0, 0), (0, 128, 0)} <= colors[0] and (0, 0, 255) in colors[1]
        assert not {(255, 0, 0), (0, 128, 0)} & colors[1] and (0, 0, 255) not in colors[0]
