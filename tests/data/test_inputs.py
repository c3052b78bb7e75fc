"""Columns for the arguments of a pipeline's call: masks, control images, reference images, videos, sounds."""

import json
import wave
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from flow_factory.check import check
from flow_factory.commands.data import main as data_command
from flow_factory.config import ConfigError, load_config
from flow_factory.data.cache import ConditionCache
from flow_factory.data.columns import DataError
from flow_factory.data.inputs import check_agreement, condition_files, inputs_of, open_inputs
from flow_factory.data.media import check_media, check_whole, open_image, open_mask, save_video
from flow_factory.data.reader import read_rows
from flow_factory.data.sounds import open_sound
from flow_factory.data.thumbnails import condition_pictures
from flow_factory.reporting.pictures import before_after_sheet, contact_sheet
from flow_factory.runs.identity import DataFingerprint
from flow_factory.runs.rows import read_training
from flow_factory.types import Clip, Row, Sample
from tests.tiny.run import checkpoint, tiny, write_rows, write_run
from tests.tiny.tables import PICTURE, parquet, picture

HERE = "train.jsonl:7"
COLUMNS = {"mask_image": "area", "control_image": "edges", "pose_video": "pose", "src_audio": "tune"}
STRIPES = Image.fromarray(np.repeat(np.uint8([[0, 255, 255, 0]]), 4, axis=0))


def tone(path: Path, rate: int = 8000, channels: int = 2, seconds: float = 0.5) -> np.ndarray:
    """Writes a WAV of 16 bits; its samples (channels, n) as floats."""
    samples = np.random.default_rng(0).integers(-(1 << 14), 1 << 14, (channels, round(rate * seconds))).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.T.tobytes())
    return samples / np.float32(1 << 15)


def media(folder: Path) -> Path:
    """A data set's folder with a file of each kind."""
    for kind in ("images", "videos", "audios"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    STRIPES.save(folder / "images" / "mask.png")
    (folder / "images" / "green.png").write_bytes(picture("green", (4, 4)))
    (folder / "images" / "red.png").write_bytes(picture("red", (4, 4)))
    save_video(Clip([Image.new("RGB", (16, 16), color) for color in ("red", "green", "blue")], 8), folder / "videos" / "walk.mp4")
    tone(folder / "audios" / "tune.wav")
    return folder


def refused(call: Callable[..., Any], *args: Any) -> str:
    with pytest.raises(DataError) as error:
        call(*args)
    assert "\n" not in str(error.value)
    return str(error.value)


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


def test_a_mask_may_be_a_video(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", [{"prompt": "a", "mask": "m.mp4"}, {"prompt": "a", "mask": ["m.png", "n.png"]}])
    first, second = read_rows(tmp_path, "train", columns={"mask": "mask"})
    assert [kind for _, kind, _ in inputs_of(first)] == ["video"] and [kind for _, kind, _ in inputs_of(second)] == ["mask"]


def with_pipeline(folder: Path, name: str, **columns: str) -> Path:
    """The YAML of a tiny run of another pipeline with the parts of FLUX.1."""
    file = write_run(folder)
    (folder / "model").mkdir(exist_ok=True)
    for part in checkpoint().iterdir():
        if part.name != "model_index.json" and not (folder / "model" / part.name).exists():
            (folder / "model" / part.name).symlink_to(part)
    index = json.loads((checkpoint() / "model_index.json").read_text()) | {"_class_name": name}
    (folder / "model" / "model_index.json").write_text(json.dumps(index))
    text = file.read_text().replace("model_type: flux1", "model_type: diffusers").replace(str(checkpoint()), f"{folder}/model")
    text = text.replace("num_inference_steps: 3", "num_inference_steps: 5")  # strength leaves some of them
    file.write_text(text.replace("data:\n", f"data:\n  columns: {json.dumps(columns)}\n", 1) if columns else text)
    return file


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


# masks


@pytest.mark.parametrize("mode", ["1", "L", "I;16", "P", "RGB", "RGBA", "LA"])
def test_masks_of_every_mode_are_the_same_in_grey(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "m.png"
    wide = Image.fromarray(np.asarray(STRIPES).astype(np.uint16) * 257) if mode == "I;16" else STRIPES.convert(mode)
    wide.save(path)
    mask = open_mask(path, HERE)
    assert mask.mode == "L" and mask.tobytes() == STRIPES.tobytes()
    assert check_whole(path, HERE, "mask") == (4, 4, 1)


def test_masks_that_mean_something_else_are_refused(tmp_path: Path) -> None:
    holes, labels, cut = tmp_path / "holes.png", tmp_path / "labels.png", tmp_path / "cut.png"
    Image.merge("LA", (STRIPES, STRIPES)).save(holes)
    STRIPES.point(lambda v: v > 0).save(labels)
    cut.write_bytes(picture("red", (64, 64))[:-30])
    assert "a mask with transparent parts" in refused(open_mask, holes, HERE)
    assert "a mask with the values 0 and 1" in refused(check_whole, labels, HERE, "mask")
    assert "damaged or truncated" in refused(check_whole, cut, HERE, "mask")
    assert "no such mask" in refused(check_media, tmp_path / "gone.png", HERE, "mask")
    assert "data.image_dir" in refused(check_media, tmp_path / "gone" / "gone.png", HERE, "mask")


def row_of(**given: Mapping[str, tuple[str, ...]] | tuple[str, ...]) -> Row:
    return Row(0, "a", source=HERE, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (row_of(images=("wide",), image_inputs={"mask_image": ("small",)}), None),
        (row_of(images=("wide",), image_inputs={"mask_image": ("tall",)}), ": tall: mask_image is 20 x 40 pixels, and image is 40 x 20"),
        (row_of(images=("tall",), image_inputs={"control_image": ("wide",), "control_mask": ("tall",)}), "control_image is 40 x 20"),
        (row_of(image_inputs={"mask": ("tall",)}, video_inputs={"video": ("wide",)}), "and video is 40 x 20 (wide)"),
        (row_of(image_inputs={"mask_image": ("tall",)}), None),
        (row_of(video_inputs={"pose_video": ("wide",), "face_video": ("tall",)}), None),
        (row_of(videos=("wide",), video_inputs={"mask": ("long",)}), ": long: mask has 9 frames, and video has 1; they must be as many"),
    ],
)  # fmt: skip
def test_a_mask_has_the_proportions_of_its_picture_and_videos_the_same_length(row: Row, said: str | None) -> None:
    sizes = {"wide": (40, 20, 1), "small": (9, 5, 1), "tall": (20, 40, 1), "long": (40, 20, 9)}
    if said is None:
        check_agreement(row, sizes)
    else:
        assert said in refused(check_agreement, row, sizes)


# sounds


def test_a_sound_is_read_to_the_bit_and_a_bad_one_is_named(tmp_path: Path) -> None:
    path, other = tmp_path / "a.wav", tmp_path / "b.wav"
    samples = tone(path)
    assert open_sound(path, HERE).samples.tobytes() == samples.tobytes() and open_sound(path, HERE).samples.dtype == np.float32
    assert check_media(path, HERE, "audio") == check_whole(path, HERE, "audio") == (2, 8000, 4000)
    other.write_bytes(picture())
    assert f"{HERE}: {other}: not a sound" in refused(check_media, other, HERE, "audio")
    save_video(Clip([Image.new("RGB", (16, 16))], 8), tmp_path / "mute.mp4")
    assert "has no sound; its streams: video" in refused(check_media, tmp_path / "mute.mp4", HERE, "audio")
    assert "no such sound" in refused(check_media, tmp_path / "c.wav", HERE, "audio")


# the cache


def test_the_key_has_the_content_and_the_argument_of_each_file(tmp_path: Path) -> None:
    folder = media(tmp_path)
    mask, green = (str(folder / "images" / name) for name in ("mask.png", "green.png"))
    cache = ConditionCache(tmp_path / "cache", "v1")
    given = [{}, {"mask_image": (mask,)}, {"mask_image": (green,)}, {"control_image": (mask,)}, {"control_image": (mask, green)}]
    keys = [cache.key(row_of(image_inputs=inputs)) for inputs in given]
    assert len(set(keys)) == len(keys)
    before = cache.key(row_of(audio_inputs={"src_audio": (str(folder / "audios" / "tune.wav"),)}))
    tone(folder / "audios" / "tune.wav", seconds=0.25)
    assert cache.key(row_of(audio_inputs={"src_audio": (str(folder / "audios" / "tune.wav"),)})) != before


def test_a_file_that_is_a_picture_and_a_mask_comes_back_as_both(tmp_path: Path) -> None:
    path = str(media(tmp_path) / "images" / "mask.png")
    row = row_of(images=(path,), image_inputs={"mask_image": (path,)})
    cond = {
        "image": [open_image(path, HERE)],
        "mask_image": open_inputs(row)["mask_image"],
        "soft": Image.new("RGBA", (3, 2), (1, 2, 3, 4)),
    }
    cache = ConditionCache(tmp_path / "cache", "v1")
    cache.put(row, cond)
    got = ConditionCache(tmp_path / "cache", "v1").get(row)
    assert got is not None
    pairs = [(got["image"][0], cond["image"][0]), (got["mask_image"][0], cond["mask_image"][0]), (got["soft"], cond["soft"])]
    assert all(a.mode == b.mode and a.size == b.size and a.tobytes() == b.tobytes() for a, b in pairs)
    (shard,) = (tmp_path / "cache").rglob("*.shard")
    assert shard.read_bytes().count(b'"file"') == 2, "neither is copied"


def test_another_mask_is_another_data_set_on_resume(tmp_path: Path) -> None:
    def print_of(row: Row) -> str:
        fingerprint = DataFingerprint()
        fingerprint(row)
        return fingerprint.hexdigest()

    rows = [row_of(), *(row_of(image_inputs={name: (file,)}) for name in ("mask_image", "control_image") for file in ("a", "b"))]
    assert len({print_of(row) for row in rows}) == 5


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


def test_a_family_that_hands_over_no_further_inputs_refuses_them(tmp_path: Path) -> None:
    file = with_pipeline(tmp_path, "FluxInpaintPipeline", ip_adapter_image="x")
    with pytest.raises(ConfigError, match=r"data.columns: ip_adapter_image is not a known column, and flux1 takes no others; write"):
        load_config(file, ["model.model_type=flux1"])


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
