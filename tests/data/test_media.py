"""Files of conditions, whatever they hold: a missing one names the nearest, and none reaches an interpreter, another file or a pipe."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from flow_factory.data.media import check_media, check_whole, save_video
from flow_factory.types import Clip
from tests.data.media_files import frames, picture, refused, saved


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
