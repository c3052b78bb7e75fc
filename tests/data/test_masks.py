"""Masks and sounds as conditions: they are read to the bit, and what means something else is refused."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flow_factory.data.cache import ConditionCache
from flow_factory.data.inputs import check_agreement, inputs_of, open_inputs
from flow_factory.data.media import check_media, check_whole, open_image, open_mask, save_video
from flow_factory.data.reader import read_rows
from flow_factory.data.sounds import open_sound
from flow_factory.runs.identity import DataFingerprint
from flow_factory.types import Clip, Row
from tests.data.inputs import HERE, STRIPES, media, refused, row_of, tone
from tests.tiny.run import write_rows
from tests.tiny.tables import picture


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


def test_a_mask_may_be_a_video(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", [{"prompt": "a", "mask": "m.mp4"}, {"prompt": "a", "mask": ["m.png", "n.png"]}])
    first, second = read_rows(tmp_path, "train", columns={"mask": "mask"})
    assert [kind for _, kind, _ in inputs_of(first)] == ["video"] and [kind for _, kind, _ in inputs_of(second)] == ["mask"]


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


# -- the cache ------------------------------------------------------------------------------------------------------------------------


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
