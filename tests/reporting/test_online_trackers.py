"""wandb and swanlab, offline, and their logins."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from flow_factory.reporting.trackers import TrackerError, require_trackers
from tests.reporting.opened import lines
from tests.tiny.patience import PATIENCE
from tests.tiny.run import ROOT
from tests.tiny.videos import played

SCRIPT = """
import sys
from pathlib import Path
from flow_factory.reporting.trackers import TrackerError, open_trackers
from tests.reporting.opened import CLIPS, SAMPLES
try:
    trackers = open_trackers([sys.argv[1]], "project", "run", Path(sys.argv[2]), {"train": {"seed": 1}})
except TrackerError as error:
    sys.exit(str(error))
trackers.log({"train/reward_mean": 0.5}, 0)
for step in range(2):
    trackers.log_samples("eval/samples", SAMPLES, step)
    trackers.log_samples("eval/clips", CLIPS, step)
trackers.finish()
"""


def logged(backend: str, folder: Path, **environ: str) -> subprocess.CompletedProcess:
    """A run of its own, with no login: both packages keep settings for the life of a process."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "SWANLAB"))}
    (folder / "tmp").mkdir()
    env = kept | {"HOME": str(folder), "TMPDIR": str(folder / "tmp"), "PYTHONPATH": str(ROOT)} | environ
    command = [sys.executable, "-c", SCRIPT, backend, str(folder / "run")]
    return subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE)


def logged_offline(backend: str, folder: Path) -> Path:
    """The backend's folder after a run."""
    done = logged(backend, folder, WANDB_MODE="offline", SWANLAB_MODE="offline")
    assert done.returncode == 0, done.stderr
    assert list((folder / "run" / backend).rglob("*.png")) and lines(folder / "run")
    assert not list((folder / "tmp").iterdir())
    return folder / "run" / backend


def test_wandb_offline_has_pictures_and_videos_that_play(tmp_path):
    videos = [played(file) for file in logged_offline("wandb", tmp_path).rglob("*.mp4")]
    assert len(videos) == 4 and sorted(v.sound is not None for v in videos) == [False, False, True, True]
    assert all(len(v.frames) == 5 and v.fps == 8 and v.frames[0].shape == (32, 48, 3) for v in videos)


def test_swanlab_offline_has_pictures_and_animations(tmp_path):
    animations = [Image.open(file) for file in logged_offline("swanlab", tmp_path).rglob("*.gif")]
    assert len(animations) == 4 and all(a.n_frames == 5 and a.size == (48, 32) for a in animations)


@pytest.mark.parametrize("backend", ["wandb", "swanlab"])
def test_without_login_the_error_says_what_to_do(tmp_path, backend):
    done = logged(backend, tmp_path)
    assert done.returncode == 1
    assert (
        f"{backend} did not start" in done.stderr
        and f"`{backend} login`" in done.stderr
        and f"{backend.upper()}_MODE=offline" in done.stderr
    )


def test_a_missing_login_is_known_before_a_run(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("WANDB")] + ["NETRC"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(TrackerError, match="wandb has no login here; run `wandb login`"):
        require_trackers(["wandb"])
    for name, value in (("WANDB_MODE", "offline"), ("WANDB_API_KEY", "x")):
        with monkeypatch.context() as context:
            context.setenv(name, value)
            require_trackers(["wandb", "tensorboard", "none"])
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password x\n")
    require_trackers(["wandb"])


@pytest.mark.parametrize(
    "kept", ["swanlab.yaml", ".swanlab/config.yaml", "home/.swanlab/.netrc", "SWANLAB_MODE=offline", "SWANLAB_API_KEY=x"]
)
def test_swanlabs_login_is_asked_alike(tmp_path, monkeypatch, kept):
    for name in [name for name in os.environ if name.startswith("SWANLAB")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr("flow_factory.reporting.trackers.SWANLAB_FILES", ("swanlab.yaml",))  # not this machine's own
    with pytest.raises(TrackerError, match="log.logging_backend: swanlab has no login here; run `swanlab login`, set SWANLAB_API_KEY, or"):
        require_trackers(["swanlab"])
    if "=" in kept:
        monkeypatch.setenv(*kept.split("="))
    else:
        (tmp_path / kept).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / kept).touch()
    require_trackers(["swanlab"])
