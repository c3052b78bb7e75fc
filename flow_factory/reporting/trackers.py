"""Where metrics and pictures go: always `metrics.jsonl` in the run's folder, beside it any of wandb, swanlab, tensorboard, a user's class.

Only the main process opens trackers. One that fails in the middle of a run is left out from then on, for `metrics.jsonl` has all.
"""

import json
import logging
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from flow_factory.data.mp4 import video_bytes
from flow_factory.reporting.metrics import MetricsFile
from flow_factory.reporting.pictures import animation, caption, contact_sheet
from flow_factory.types import Clip, Sample
from flow_factory.utils.errors import UserError, file_errors
from flow_factory.utils.registry import Registry
from flow_factory.utils.user_code import user_errors, watch_threads

logger = logging.getLogger(__name__)
WANDB_ADVICE = "run `wandb login`, set WANDB_API_KEY, or set WANDB_MODE=offline (`wandb sync` later)"
SWANLAB_ADVICE = "run `swanlab login`, set SWANLAB_API_KEY, or set SWANLAB_MODE=offline (`swanlab sync` later)"
SWANLAB_FILES = ("swanlab.yaml", "swanlab.yml", ".env", "/etc/swanlab", "/run/secrets/swanlab")
"""Files in which swanlab may have settings, besides the environment and its two folders `.swanlab`."""


class TrackerError(UserError):
    """A tracker that cannot start; the message says what to install or how to log in."""


class Tracker(Protocol):
    """The interface of a tracker. A user's class, named by its dotted path, is constructed with the same four arguments."""

    def __init__(self, project: str, run_name: str, run_dir: Path, config: dict[str, Any]): ...

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Scalars of one step (an epoch, from 0)."""

    def log_samples(self, name: str, samples: Sequence[Sample], step: int) -> None:
        """Pictures or clips with prompts and rewards under one name."""

    def finish(self) -> None:
        """Writes what is still buffered."""


class Trackers:
    """All trackers of a run: each call reaches all of them."""

    def __init__(self, metrics_file: MetricsFile, backends: Mapping[str, Tracker]):
        self.metrics_file, self.backends = metrics_file, dict(backends)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Scalars of one step; several calls a step are fine."""
        self.metrics_file.log(metrics, step)
        self._each(lambda backend: backend.log(metrics, step))

    def log_samples(self, name: str, samples: Sequence[Sample], step: int) -> None:
        """Pictures or clips with their prompts and rewards, where there are any."""
        if samples:
            self._each(lambda backend: backend.log_samples(name, samples, step))

    def truncate_after(self, step: int) -> None:
        """Drops the later steps of `metrics.jsonl`. Called when a run is resumed."""
        self.metrics_file.truncate_after(step)

    def finish(self) -> None:
        """Closes every tracker."""
        self.metrics_file.finish()
        self._each(lambda backend: backend.finish())

    def _each(self, do: Callable[[Tracker], None]) -> None:
        """Calls every tracker that has not failed. A server, a full disk or an error in a library does not end the run."""
        for name, backend in list(self.backends.items()):
            try:
                with user_errors(f"tracker {name!r} failed", type(backend).__module__, TrackerError):
                    do(backend)
            except TrackerError as error:
                del self.backends[name]
                logger.warning("%s; the run continues without it; metrics.jsonl has all metrics", error)


class Wandb:
    """Weights & Biases. The run's id is kept in the run's folder, so that a resumed run goes on in the same page."""

    def __init__(self, project: str, run_name: str, run_dir: Path, config: dict[str, Any]):
        try:
            import wandb
        except ImportError as error:
            raise TrackerError(_install("wandb", "wandb")) from error
        try:
            self.run = wandb.init(project=project, name=run_name, dir=run_dir, config=config, id=_run_id(run_dir), resume="allow")
        except wandb.Error as error:
            raise TrackerError(
                f"wandb did not start: {str(error).rstrip('.')}; {WANDB_ADVICE}; or choose another log.logging_backend"
            ) from error
        self.run.define_metric("*", step_metric="step")  # wandb's own step may not go back, as it does at a resume
        self.image, self.video = wandb.Image, wandb.Video

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.run.log({**metrics, "step": step})

    def log_samples(self, name: str, samples: Sequence[Sample], step: int) -> None:
        self.run.log({name: [self._media(s) for s in samples], "step": step})

    def _media(self, sample: Sample) -> Any:
        """An image, or a clip as MP4: wandb gets the bytes, and has a file of its own that it clears away when it has copied it."""
        if not isinstance(sample.media, Clip):
            return self.image(sample.media, caption=caption(sample))
        return self.video(BytesIO(video_bytes(sample.media)), caption=caption(sample), format="mp4")

    def finish(self) -> None:
        self.run.finish()


class Swanlab:
    """SwanLab. The run's id is kept in the run's folder, so that a resumed run goes on in the same page."""

    def __init__(self, project: str, run_name: str, run_dir: Path, config: dict[str, Any]):
        try:
            import swanlab
            from swanlab.exceptions import AuthenticationError
        except ImportError as error:
            raise TrackerError(_install("swanlab", "swanlab")) from error
        try:
            self.run = swanlab.init(
                project=project, name=run_name, log_dir=run_dir / "swanlab", config=config, id=_run_id(run_dir), resume="allow"
            )
        except (AuthenticationError, RuntimeError, OSError) as error:
            raise TrackerError(
                f"swanlab did not start: {str(error).rstrip('.')}; {SWANLAB_ADVICE}; or choose another log.logging_backend"
            ) from error
        self.image, self.video = swanlab.Image, swanlab.Video

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.run.log(dict(metrics), step=step)

    def log_samples(self, name: str, samples: Sequence[Sample], step: int) -> None:
        self.run.log({name: [self._media(s) for s in samples]}, step=step)

    def _media(self, sample: Sample) -> Any:
        """An image, or a clip as GIF, the one format of videos that it takes."""
        if not isinstance(sample.media, Clip):
            return self.image(sample.media, caption=caption(sample))
        return self.video(animation(sample.media), caption=caption(sample))

    def finish(self) -> None:
        self.run.finish()


class Tensorboard:
    """TensorBoard files in `tensorboard/`; it has no captions and no videos of its own, so the samples become one contact sheet."""

    def __init__(self, project: str, run_name: str, run_dir: Path, config: dict[str, Any]):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise TrackerError(_install("tensorboard", "tensorboard")) from error
        try:
            self.writer = SummaryWriter(str(run_dir / "tensorboard"))
        except OSError as error:
            raise TrackerError(f"tensorboard cannot write to {run_dir / 'tensorboard'}: {error}; choose another log.save_dir") from error
        text = json.dumps(config, indent=2, default=str)
        self.writer.add_text("config", f"{project} / {run_name}\n\n" + "\n".join("    " + line for line in text.splitlines()))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(name, float(value), step)

    def log_samples(self, name: str, samples: Sequence[Sample], step: int) -> None:
        self.writer.add_image(name, np.asarray(contact_sheet(samples)), step, dataformats="HWC")
        self.writer.flush()

    def finish(self) -> None:
        self.writer.close()


PACKAGES = ("wandb", "swanlab", "tensorboard")
LIBRARIES = {"wandb": "wandb.sdk", "swanlab": "swanlab.sdk", "tensorboard": "tensorboard.summary"}
"""Tracker -> the prefix of its modules, from which its threads come."""
TRACKERS = Registry("tracker", {name: f"{__name__}:{name.title()}" for name in PACKAGES})


def require_trackers(names: Sequence[str]) -> None:
    """What can be known before anything is loaded, and leaves nothing behind.

    Raises:
        TrackerError: a backend is not installed, or has no login where it needs one.
        UnknownName: a name that is neither a backend nor a dotted path.
    """
    for name in map(TRACKERS.canonical, names):
        if name in PACKAGES and find_spec(name) is None:
            raise TrackerError(_install(name, name))
        if name.lower() != "none":
            TRACKERS[name]
        may_start, advice = LOGINS.get(name, (None, ""))
        if may_start is not None and not may_start(os.environ):
            raise TrackerError(f"log.logging_backend: {name} has no login here; {advice}; or choose another log.logging_backend")


def wandb_may_start(environment: Mapping[str, str]) -> bool:
    """Whether wandb is offline, or has a key in the environment or in the file that `wandb login` writes."""
    if environment.get("WANDB_MODE", "online") != "online" or any(map(environment.get, ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"))):
        return True
    file = Path(environment.get("NETRC") or Path(environment.get("HOME", "/"), ".netrc"))
    return file.is_file() and "machine" in file.read_text("utf-8", "replace")


def swanlab_may_start(environment: Mapping[str, str]) -> bool:
    """Whether swanlab is offline, or has a key in the environment, in its settings or in the file that `swanlab login` writes."""
    if environment.get("SWANLAB_MODE", "online") != "online" or environment.get("SWANLAB_API_KEY"):
        return True
    home = environment.get("SWANLAB_ROOT") or environment.get("SWANLAB_SAVE_DIR") or Path(environment.get("HOME", "/"), ".swanlab")
    kept = [Path(folder, name) for folder in (".swanlab", home) for name in (".netrc", "config.yaml", "config.yml")]
    return any(path.exists() for path in (*map(Path, SWANLAB_FILES), *kept))


LOGINS = {"wandb": (wandb_may_start, WANDB_ADVICE), "swanlab": (swanlab_may_start, SWANLAB_ADVICE)}


def open_trackers(names: Sequence[str], project: str, run_name: str, run_dir: Path, config: dict[str, Any]) -> Trackers:
    """`metrics.jsonl` in `run_dir`, and the named backends; "none" names none.

    Raises:
        TrackerError: a backend is not installed, not logged in, or cannot write; nothing of the run is lost, for it has not begun.
        UnknownName: a name that is neither a backend nor a dotted path.
    """
    classes = {name: TRACKERS[name] for name in names if name.lower() != "none"}
    watch_threads({module: f"tracker {name!r}" for name, module in LIBRARIES.items() if name in map(TRACKERS.canonical, names)})
    with file_errors("log.save_dir", run_dir, "write a folder that can be written to", TrackerError):
        run_dir.mkdir(parents=True, exist_ok=True)
    backends = {}
    for name, cls in classes.items():
        with user_errors(f"tracker {name!r} did not start", cls.__module__, TrackerError):
            backends[name] = cls(project, run_name, run_dir, config)
    with file_errors("log.save_dir", run_dir, "write a folder that can be written to", TrackerError):
        return Trackers(MetricsFile(run_dir), backends)


def _install(name: str, package: str) -> str:
    return f"log.logging_backend is {name}, which is not installed: `pip install {package}`, or choose tensorboard or none"


def _run_id(run_dir: Path) -> str:
    """The id under which the run is known outside, drawn once; 21 letters and digits suit both wandb and swanlab."""
    file = run_dir / "tracker_id"
    if not file.exists():
        file.write_text(secrets.token_hex(11)[:21])
    return file.read_text()
