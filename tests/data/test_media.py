"""Condition images and videos: every kind of file comes out as it looks, and every bad one is named with what would be right."""

import os
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from flow_factory.data import media_checks
from flow_factory.data.media import check_media, check_whole, open_image, open_video, save_video
from flow_factory.data.reader import DataError
from flow_factory.types import Clip

HERE = "train.jsonl:7"


def picture(width: int = 5, height: int = 3) -> Image.Image:
    """No two pixels alike, and no symmetry."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([40 * x % 256, 70 * y % 256, (x + y) * 20 % 256], axis=-1).astype(np.uint8))


def frames(n: int, width: int, height: int) -> list[Image.Image]:
    """A light field that moves over a dark one, in colours that yuv420p can keep."""
    out = []
    for k in range(n):
        frame = Image.new("RGB", (width, height), (40, 80, 120))
        frame.paste((200, 120, 60), (2 * k, 4, 2 * k + width // 3, height - 4))
        out.append(frame)
    return out


def refused(call: Callable, path: Path, *args: str) -> str:
    with pytest.raises(DataError) as error:
        call(path, HERE, *args)
    message = str(error.value)
    assert message.startswith(f"{HERE}: {path}: "), "the line of the data set and the file come first"
    return message.removeprefix(f"{HERE}: {path}: ")


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


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


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    for name in ("red_fox.png", "other.png"):
        saved(tmp_path / name, picture())
    assert refused(check_media, tmp_path / "red_fxo.png", "image") == (
        "no such image. Did you mean 'red_fox.png'? Its folder has other.png, red_fox.png"
    )
    assert refused(check_media, tmp_path / "deep" / "a.mp4", "video") == (
        f"no such video, nor its folder; {tmp_path} has other.png, red_fox.png. Relative names start at data.video_dir"
    )
    assert refused(check_media, tmp_path, "image") == "a folder, where an image belongs"


# videos


@pytest.mark.parametrize(("width", "height"), [(64, 48), (63, 48), (64, 47), (63, 47)])
@pytest.mark.parametrize("fps", [16.0, 24000 / 1001, 12.5])
def test_a_clip_survives_the_way_to_mp4_and_back(tmp_path: Path, width: int, height: int, fps: float) -> None:
    clip = Clip(frames(17, width, height), fps)
    save_video(clip, tmp_path / "a.mp4")
    check_media(tmp_path / "a.mp4", HERE, "video")
    back = open_video(tmp_path / "a.mp4", HERE)
    assert len(back.frames) == 17 and back.fps == pytest.approx(fps, rel=1e-6)
    assert back.frames[0].size == (width + width % 2, height + height % 2)
    for k in (0, 8, 16):
        was, now = np.asarray(clip.frames[k], dtype=float), np.asarray(back.frames[k], dtype=float)
        assert np.abs(was - now[:height, :width]).mean() < 6 and np.abs(was.mean((0, 1)) - now[:height, :width].mean((0, 1))).max() < 3
        if width % 2:
            assert np.abs(now[:, -1] - now[:, -2]).mean() < 4, "the last column is repeated, not black"


@pytest.mark.parametrize("colour", [(200, 40, 30), (30, 160, 60), (40, 60, 190), (255, 255, 255), (0, 0, 0)])
def test_colours_survive(tmp_path: Path, colour: tuple[int, int, int]) -> None:
    """Strong ones would not, if the matrix that encodes were not the one that the file names."""
    save_video(Clip([Image.new("RGB", (64, 48), colour)] * 3, 8.0), tmp_path / "a.mp4")
    shown = np.asarray(open_video(tmp_path / "a.mp4", HERE).frames[1], dtype=float)
    assert np.abs(shown - colour).max() <= 3


def test_an_mp4_says_what_players_must_know(tmp_path: Path) -> None:
    save_video(Clip(frames(9, 64, 48), 8.0), tmp_path / "a.mp4")
    with av.open(str(tmp_path / "a.mp4")) as file:
        stream = file.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt, stream.frames) == ("h264", "yuv420p", 9)
        assert stream.codec_context.colorspace == stream.codec_context.color_range == 1, "BT.709, limited range"
        assert not file.streams.audio
    content = (tmp_path / "a.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat"), "a browser can begin before it has all"


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [16000, 24000, 44100])
def test_sound_goes_along(tmp_path: Path, channels: int, rate: int) -> None:
    tone = np.sin(2 * np.pi * 440 * np.arange(2 * rate) / rate).astype(np.float32) * 0.5
    save_video(Clip(frames(16, 64, 48), 8.0, np.stack([tone, 0 * tone])[:channels], rate), tmp_path / "a.mp4")
    with av.open(str(tmp_path / "a.mp4")) as file:
        stream = file.streams.audio[0]
        assert (stream.codec_context.name, stream.codec_context.sample_rate, stream.channels) == ("aac", rate, channels)
        heard = np.concatenate([f.to_ndarray() for f in file.decode(stream)], axis=1)
    assert heard.shape[1] == pytest.approx(2 * rate, abs=3 * 1024)
    middle = heard[:, rate // 2 : rate]
    assert np.abs(np.fft.rfft(middle[0])).argmax() * rate / middle.shape[1] == pytest.approx(440, abs=3)
    assert np.sqrt((middle[0] ** 2).mean()) == pytest.approx(0.5 / 2**0.5, rel=0.05) and (channels == 1 or np.abs(middle[1]).max() < 0.01)
    assert len(open_video(tmp_path / "a.mp4", HERE).frames) == 16


@pytest.mark.parametrize(("clip", "message"), [
    (Clip([], 8.0), "frames of one size"),
    (Clip([Image.new("RGB", (8, 8)), Image.new("RGB", (8, 6))], 8.0), "not sizes [(8, 6), (8, 8)] at 8.0 fps"),
    (Clip([Image.new("RGB", (8, 8))], 0.0), "a positive rate"),
    (Clip([Image.new("RGB", (8, 8))], 8.0, np.zeros((3, 10)), 16000), "not (3, 10) at 16000 Hz"),
    (Clip([Image.new("RGB", (8, 8))], 8.0, np.zeros((1, 10))), "not (1, 10) at None Hz"),
])  # fmt: skip
def test_what_is_no_clip_is_not_written(tmp_path: Path, clip: Clip, message: str) -> None:
    with pytest.raises(ValueError) as error:
        save_video(clip, tmp_path / "a.mp4")
    assert message in str(error.value)


@pytest.mark.parametrize(("matrix", "turns"), [((0, 1, -1, 0), -1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)])
def test_a_video_is_turned_upright(tmp_path: Path, matrix: tuple[int, ...], turns: int) -> None:
    """A phone writes its frames as the sensor lies, and in the track's header how to turn them: x' = ax + cy, y' = bx + dy."""
    save_video(Clip(frames(3, 64, 48), 8.0), tmp_path / "a.mp4")
    straight = [np.asarray(f) for f in open_video(tmp_path / "a.mp4", HERE).frames]
    content = bytearray((tmp_path / "a.mp4").read_bytes())
    at = content.index(b"tkhd") + 44
    assert struct.unpack(">9i", content[at : at + 36]) == (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    a, b, c, d = (v << 16 for v in matrix)
    content[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    (tmp_path / "a.mp4").write_bytes(content)
    assert all(np.array_equal(f, np.rot90(s, turns)) for f, s in zip(open_video(tmp_path / "a.mp4", HERE).frames, straight, strict=True))


@pytest.mark.parametrize("share", [0.1, 0.6, 0.999])
@pytest.mark.parametrize("suffix", ["webm", "mkv", "mov", "avi"])
def test_other_truncated_videos_are_found(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"a.{suffix}"
    with av.open(str(path), "w") as file:
        stream = file.add_stream({"webm": "libvpx-vp9", "avi": "mpeg4"}.get(suffix, "libx264"), rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for frame in frames(17, 64, 48):
            file.mux(stream.encode(av.VideoFrame.from_image(frame)))
        file.mux(stream.encode())
    check_media(path, HERE, "video")
    back = open_video(path, HERE)
    assert (len(back.frames), back.fps) == (17, 8.0)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    if (suffix, share) != ("avi", 0.999):  # its index, which comes last, is not needed
        assert "truncated" in refused(open_video, path)


@pytest.mark.parametrize("sound", [False, True])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9, 0.999])
def test_a_truncated_mp4_is_found_by_its_header(tmp_path: Path, sound: bool, share: float) -> None:
    """With sound, av would hand out the frames that are left and say nothing."""
    audio = (np.zeros((1, 32000), np.float32), 16000) if sound else ()
    save_video(Clip(frames(17, 64, 48), 8.0, *audio), tmp_path / "a.mp4")
    content = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "a.mp4").write_bytes(content[: int(share * len(content))])
    for call in (check_media, open_video):
        assert "truncated" in refused(call, tmp_path / "a.mp4", *(["video"] if call is check_media else []))


def test_most_damage_in_the_frames_is_found_when_they_are_opened(tmp_path: Path) -> None:
    """H.264 has no checksum, so a single bit may pass; its decoder conceals what it sees to be wrong, and says so in a flag."""
    save_video(Clip(frames(17, 64, 48), 8.0), tmp_path / "a.mp4")
    content, messages = (tmp_path / "a.mp4").read_bytes(), []
    first = content.index(b"mdat") + 800  # past the encoder's own description
    for at in range(first, len(content), (len(content) - first) // 60):
        (tmp_path / "a.mp4").write_bytes(content[:at] + bytes([content[at] ^ 64]) + content[at + 1 :])
        try:
            open_video(tmp_path / "a.mp4", HERE)
        except DataError as error:
            messages.append(str(error))
    assert len(messages) > 30 and all(m.startswith(f"{HERE}: {tmp_path / 'a.mp4'}: ") and "damaged or truncated" in m for m in messages)


def test_what_is_no_video_is_found_by_the_header(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"hello there, world")
    assert refused(check_media, tmp_path / "a.mp4", "video").startswith("not a video, or damaged or truncated (Invalid data found")
    path = saved(tmp_path / "a.png", picture())
    assert refused(check_media, path, "video") == "an image, not a video; images belong in the column 'image' or 'images'"
    save_video(Clip(frames(2, 64, 48), 8.0), tmp_path / "b.mp4")
    assert "not a readable image" in refused(check_media, tmp_path / "b.mp4", "image")
    with av.open(str(tmp_path / "c.mp4"), "w") as file:
        stream = file.add_stream("aac", rate=16000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 16000
        file.mux([*stream.encode(sound), *stream.encode()])
    assert refused(check_media, tmp_path / "c.mp4", "video") == "has no video stream; its streams: audio"


def test_a_video_that_fills_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_video(Clip(frames(17, 64, 48), 8.0), tmp_path / "a.mp4")
    monkeypatch.setattr(media_checks, "MOST_VIDEO", 17 * 64 * 48 - 1)
    for call in (check_media, open_video):
        message = refused(call, tmp_path / "a.mp4", *(["video"] if call is check_media else []))
        assert message == "17 frames of 64 x 48 are 0.1 megapixels; at most 0.1"


EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 9 9
%%EndComments
%%EOF
"""


@pytest.mark.parametrize("name", ["a.eps", "a.png"])
def test_postscript_reaches_no_interpreter(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "check_call", lambda *_, **__: pytest.fail("a program was started"))
    (tmp_path / name).write_bytes(EPS)
    for call in (check_media, check_whole):
        assert refused(call, tmp_path / name, "image").startswith("not a readable image")


@pytest.mark.parametrize("name", ["a.m3u8", "a.mp4", "a.ffconcat", "a.mkv"])
@pytest.mark.parametrize("kind", ["hls", "concat", "dash"])
def test_a_playlist_opens_no_other_file(tmp_path: Path, name: str, kind: str) -> None:
    inner = tmp_path / "inner.mp4"
    save_video(Clip(frames(3, 64, 48), 8.0), inner)
    (tmp_path / name).write_text({
        "hls": f"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:5\n#EXTINF:2,\n{inner}\n#EXT-X-ENDLIST\n",
        "concat": f"ffconcat version 1.0\nfile '{inner.name}'\n",
        "dash": f"<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011'><BaseURL>{inner}</BaseURL></MPD>",
    }[kind])  # fmt: skip
    for call in (check_media, check_whole):
        assert refused(call, tmp_path / name, "video").startswith("not a video, or damaged or truncated")


def special(folder: Path, kind: str) -> Path:
    path = folder / "a"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind(str(path))
    elif kind == "link to nothing":
        path.symlink_to(folder / "gone")
    elif kind == "loop":
        path.symlink_to(path)
    return {
        "device": Path("/dev/zero"),
        "memory": Path("/proc/self/mem"),
        "long": folder / ("n" * 300),
        "below a file": Path(__file__) / "a.png",
    }.get(kind, path)


SPECIAL = {
    "pipe": "a pipe, where {} belongs", "socket": "a socket, where {} belongs", "device": "a device, where {} belongs",
    "link to nothing": "No such file or directory; {} that can be read belongs there",
    "loop": "Too many levels of symbolic links; {} that can be read belongs there",
    "memory": "Input/output error; {} that can be read belongs there", "long": "no such", "below a file": "no such",
}  # fmt: skip


@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_file_is_neither_waited_for_nor_read(tmp_path: Path, kind: str) -> None:
    path = special(tmp_path, kind)
    for medium, wanted in (("image", "an image"), ("video", "a video")):
        assert refused(check_media, path, medium).startswith(SPECIAL[kind].format(wanted))


def test_media_needs_no_torch_and_no_av_to_import() -> None:
    code = "import sys, flow_factory.data.media; sys.exit('torch' in sys.modules or 'av' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0
