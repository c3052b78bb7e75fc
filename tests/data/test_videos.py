"""Videos and their sound: what is written is what is read, and a damaged one is named."""

import struct
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from flow_factory.data import media_checks
from flow_factory.data.media import check_media, open_video, save_video
from flow_factory.data.reader import DataError
from flow_factory.types import Clip
from tests.data.media_files import HERE, frames, picture, refused, saved


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
