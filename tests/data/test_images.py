"""Condition images: every kind of file comes out as it looks, and every bad one is named with what would be right."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flow_factory.data.media import check_media, open_image
from flow_factory.data.reader import DataError
from tests.data.media_files import HERE, picture, refused, saved


# images
@pytest.mark.parametrize("suffix", ["png", "webp", "bmp", "tiff"])
def test_an_rgb_image_is_kept_to_the_bit(tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path / f"a.{suffix}", picture(), **({"lossless": True} if suffix == "webp" else {}))
    check_media(path, HERE, "image")
    assert open_image(path, HERE).mode == "RGB" and np.array_equal(open_image(path, HERE), picture())


UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a.swapaxes(0, 1), 2),
    8: lambda a: np.rot90(a, 1),
}
"""How the stored pixels are turned for show, by the value of EXIF's Orientation."""


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    shown = open_image(saved(tmp_path / "a.png", picture(), exif=exif), HERE)
    assert np.array_equal(shown, UPRIGHT[orientation](np.asarray(picture())))


def _palette(transparent: bool) -> Image.Image:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    if transparent:
        image.info["transparency"] = 1
    return image


def _grey(values: list[int], mode: str, dtype: type) -> Image.Image:
    return Image.fromarray(np.array([values], dtype=dtype)).convert(mode)


SEEN: dict[str, tuple[str, Image.Image, list[tuple[int, int, int]]]] = {
    "half transparent red": ("png", Image.new("RGBA", (1, 1), (255, 0, 0, 128)), [(255, 127, 127)]),
    "wholly transparent black": ("webp", Image.new("RGBA", (1, 1), (0, 0, 0, 0)), [(255, 255, 255)]),
    "grey with alpha": ("png", Image.new("LA", (1, 1), (0, 51)), [(204, 204, 204)]),
    "palette": ("png", _palette(False), [(255, 0, 0), (0, 0, 255)]),
    "palette with a transparent entry": ("png", _palette(True), [(255, 0, 0), (255, 255, 255)]),
    "gif": ("gif", _palette(False), [(255, 0, 0), (0, 0, 255)]),
    "grey": ("png", Image.new("L", (1, 1), 77), [(77, 77, 77)]),
    "one bit": ("png", Image.fromarray(np.array([[True, False]])), [(255, 255, 255), (0, 0, 0)]),
    "16-bit grey": ("png", _grey([0, 128, 129, 257 * 200, 65535], "I;16", np.uint16), [(v, v, v) for v in (0, 0, 1, 200, 255)]),
    "16-bit grey tiff": ("tiff", _grey([257 * 3, 65535], "I;16", np.uint16), [(3, 3, 3), (255, 255, 255)]),
    "cmyk": ("tiff", Image.new("CMYK", (1, 1), (0, 255, 255, 0)), [(255, 0, 0)]),
}


@pytest.mark.parametrize("case", SEEN)
def test_every_mode_comes_out_as_it_looks_on_white(tmp_path: Path, case: str) -> None:
    suffix, image, pixels = SEEN[case]
    shown = open_image(saved(tmp_path / f"a.{suffix}", image, **({"lossless": True} if suffix == "webp" else {})), HERE)
    assert shown.mode == "RGB" and [tuple(p) for p in np.asarray(shown)[0].tolist()] == pixels


def test_floats_have_no_agreed_range(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.tiff", Image.fromarray(np.zeros((2, 2), np.float32)))
    assert refused(check_media, path, "image") == "pixels of mode F have no common range; save it with 8 or 16 bits a channel"


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp"])
@pytest.mark.parametrize("share", [0.1, 0.6, 0.95])
def test_a_truncated_image_is_found_when_it_is_opened(tmp_path: Path, suffix: str, share: float) -> None:
    whole = saved(tmp_path / f"a.{suffix}", Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)))
    whole.write_bytes(whole.read_bytes()[: int(share * whole.stat().st_size)])
    assert "damaged or truncated" in refused(open_image, whole)


@pytest.mark.filterwarnings("ignore")  # Pillow's, on the way to its exceptions
def test_damaged_bytes_never_raise_anything_else(tmp_path: Path) -> None:
    """Pillow's decoders raise a dozen kinds of exceptions."""
    numbers, path = np.random.default_rng(0), tmp_path / "a.bin"
    for suffix in ("png", "jpg", "webp", "tiff", "gif"):
        good = saved(tmp_path / f"a.{suffix}", picture(30, 20)).read_bytes()
        for _ in range(60):
            bad = bytearray(good)
            for k in numbers.integers(0, min(len(good), 200), 3):
                bad[k] = numbers.integers(256)
            path.write_bytes(bad)
            try:
                open_image(path, HERE)
            except DataError as error:
                assert str(error).startswith(f"{HERE}: {path}: ")


def png_header(width: int, height: int) -> bytes:
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head)) + struct.pack(">I", 0) + b"IDAT"


@pytest.mark.parametrize(("side", "message"), [
    (9000, "81 megapixels (9000 x 9000); at most 64"), (100_000, "far more than the 64 megapixels that an image may have")
])  # fmt: skip
def test_an_absurd_size_is_found_by_the_header(tmp_path: Path, side: int, message: str) -> None:
    (tmp_path / "a.png").write_bytes(png_header(side, side))
    assert refused(check_media, tmp_path / "a.png", "image").startswith(message)


NO_IMAGE = {
    "text": (b"hello there, world", "not a readable image, such as PNG, JPEG or WebP; it begins with b'hello there, wor'"),
    "nothing": (b"", "an empty file"),
    "a header alone": (b"\x89PNG\r\n\x1a\n", "a PNG that is damaged or truncated"),
}


@pytest.mark.parametrize("case", NO_IMAGE)
def test_what_is_no_image_is_found_by_the_header(tmp_path: Path, case: str) -> None:
    content, message = NO_IMAGE[case]
    (tmp_path / "a.png").write_bytes(content)
    assert refused(check_media, tmp_path / "a.png", "image") == message


def test_an_animation_is_no_image(tmp_path: Path) -> None:
    one, two = Image.new("RGB", (4, 4)), Image.new("RGB", (4, 4), "red")
    path = saved(tmp_path / "a.gif", one, save_all=True, append_images=[two])
    assert refused(check_media, path, "image") == "has several frames (GIF); an image must have one"
