"""Metrics are on disk whatever happens; a tracker that cannot start says what to do; pictures arrive with their captions."""

import math
import re
import shutil
import sys
import threading
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flow_factory.reporting.metrics import read_metrics
from flow_factory.reporting.pictures import contact_sheet
from flow_factory.reporting.trackers import TrackerError, open_trackers
from flow_factory.utils.registry import UnknownName
from tests.reporting.opened import CLIPS, SAMPLES, lines, opened
from tests.tiny.patience import PATIENCE


def test_metrics_are_written_through_and_appended(tmp_path):
    trackers = opened(tmp_path / "new" / "run", "none")
    trackers.log({"train/reward_mean": 0.5}, 0)
    (first,) = lines(tmp_path / "new" / "run")  # before anything was closed
    assert first["step"] == 0 and first["train/reward_mean"] == 0.5 and first["time"] > 1e9
    trackers.finish()
    again = opened(tmp_path / "new" / "run")
    again.log({"train/reward_mean": 0.6}, 1)
    again.log_samples("eval/samples", SAMPLES, 1)
    assert [r["step"] for r in lines(tmp_path / "new" / "run")] == [0, 1]


def test_not_a_number_is_null(tmp_path):
    opened(tmp_path).log({"a": math.nan, "b": math.inf, "c": 1}, 0)
    assert lines(tmp_path)[0] | {"time": 0} == {"step": 0, "time": 0, "a": None, "b": None, "c": 1.0}


def test_a_resume_drops_later_steps_and_goes_on(tmp_path):
    trackers = opened(tmp_path)
    for step in range(5):
        trackers.log({"a": step}, step)
    trackers.finish()
    resumed = opened(tmp_path)
    resumed.truncate_after(2)
    resumed.log({"a": 30.0}, 3)
    assert [(r["step"], r["a"]) for r in lines(tmp_path)] == [(0, 0), (1, 1), (2, 2), (3, 30)]
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("whole", ["", '{"step": 0, "a": 1}\n'])
def test_a_torn_last_line_is_ignored_and_then_removed(tmp_path, whole):
    path = tmp_path / "metrics.jsonl"
    path.write_text(whole + '{"step": 1, "a')
    assert [r["step"] for r in read_metrics(path)] == [0] * bool(whole)
    opened(tmp_path).log({"a": 2.0}, 1)
    assert [r["step"] for r in lines(tmp_path)] == [0] * bool(whole) + [1]


def test_a_broken_line_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\nnonsense\n')
    with pytest.raises(ValueError, match="metrics.jsonl:2: not JSON"):
        read_metrics(tmp_path / "metrics.jsonl")


@pytest.mark.parametrize(("name", "module"), [("wandb", "wandb"), ("swanlab", "swanlab"), ("tensorboard", "torch.utils.tensorboard")])
def test_a_missing_package_is_named_with_its_remedy(tmp_path, monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(TrackerError, match=f"{name}, which is not installed: `pip install {name}`"):
        opened(tmp_path, name)


def test_an_unknown_tracker_lists_the_known_ones(tmp_path):
    with pytest.raises(UnknownName, match="no tracker 'wanbd'. Did you mean 'wandb'"):
        opened(tmp_path, "wanbd")


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrackerError, match="log.save_dir: .*file.*: Not a directory; write a folder"):
        opened(tmp_path / "file" / "run")


def test_tensorboard_that_cannot_write_is_named(tmp_path):
    (tmp_path / "tensorboard").write_text("")
    with pytest.raises(TrackerError, match="tensorboard cannot write"):
        opened(tmp_path, "tensorboard")


def test_tensorboard_has_scalars_and_pictures(tmp_path):
    trackers = opened(tmp_path, "tensorboard")
    trackers.log({"train/reward_mean": 0.5}, 7)
    trackers.log_samples("eval/samples", SAMPLES, 7)
    trackers.finish()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    (scalar,), (picture,) = events.Scalars("train/reward_mean"), events.Images("eval/samples")
    assert (scalar.step, scalar.value) == (7, 0.5) and picture.step == 7 and picture.width > 160


def test_tensorboard_has_clips_as_rows_of_frames(tmp_path):
    trackers = opened(tmp_path, "tensorboard")
    trackers.log_samples("eval", CLIPS, 7)
    trackers.finish()
    (picture,) = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Images("eval")
    shown = np.asarray(Image.open(BytesIO(picture.encoded_image_string)))
    assert (shown == np.asarray(contact_sheet(CLIPS))).all()


class Noted:
    """A user's own tracker."""

    calls: list[tuple] = []

    def __init__(self, project, run_name, run_dir, config):
        self.calls.append(("open", project, run_name, config))

    def log(self, metrics, step):
        self.calls.append(("log", dict(metrics), step))

    def log_samples(self, name, samples, step):
        self.calls.append(("samples", name, len(samples), step))

    def finish(self):
        self.calls.append(("finish",))


def test_a_class_by_its_dotted_path_runs_beside_others(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    trackers = opened(tmp_path, "test_trackers.Noted", "tensorboard", "none")
    trackers.log({"a": 1.0}, 0)
    trackers.log_samples("s", SAMPLES, 0)
    trackers.finish()
    calls = sys.modules["test_trackers"].Noted.calls
    assert calls == [("open", "project", "run", {"train": {"seed": 1}}), ("log", {"a": 1.0}, 0), ("samples", "s", 1, 0), ("finish",)]
    assert len(trackers.backends) == 2 and lines(tmp_path)


class Faulty(Noted):
    """Does what its project says: one raises, one ends the program, one is interrupted."""

    def __init__(self, project, *given):
        self.error = {"raises": KeyError("x"), "leaves": SystemExit(0), "interrupted": KeyboardInterrupt()}.get(project)
        if project == "never starts":
            raise KeyError("no server")

    def log(self, metrics, step):
        if step == 1 and self.error is not None:
            raise self.error


FAULTY = f"{__name__}.Faulty"


@pytest.mark.parametrize(("project", "said"), [("raises", "KeyError: 'x'"), ("leaves", "it ended the program, by SystemExit\\(0\\)")])
def test_a_tracker_that_fails_in_the_middle_is_left_out_with_a_word(tmp_path, project, said, caplog):
    trackers = open_trackers([FAULTY, f"{__name__}.Noted"], project, "run", tmp_path, {})
    for step in range(4):
        trackers.log({"a": step}, step)
    trackers.log_samples("s", SAMPLES, 4)
    trackers.finish()
    (line,) = [r.getMessage() for r in caplog.records]
    assert re.fullmatch(rf"tracker '{FAULTY}' failed: {said} \(.*test_trackers.py:\d+, in log\); the run continues without it; .*", line)
    assert [r["a"] for r in lines(tmp_path)] == [0, 1, 2, 3] and list(trackers.backends) == [f"{__name__}.Noted"]


def test_a_tracker_that_cannot_start_is_one_line_and_an_interrupt_stays_one(tmp_path):
    with pytest.raises(TrackerError, match=rf"^tracker '{FAULTY}' did not start: KeyError: 'no server' \(.*test_trackers.py:\d+, in"):
        open_trackers([FAULTY], "never starts", "run", tmp_path, {})
    trackers = open_trackers([FAULTY], "interrupted", "run", tmp_path, {})
    with pytest.raises(KeyboardInterrupt):
        trackers.log({"a": 1.0}, 1)


def test_tensorboard_whose_folder_goes_is_left_out_and_its_thread_dies_in_a_line(tmp_path, capsys, caplog, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    others = set(threading.enumerate())
    trackers = opened(tmp_path, "tensorboard")
    writers = set(threading.enumerate()) - others
    shutil.rmtree(tmp_path / "tensorboard")
    for step in range(3):
        trackers.log({"a": step}, step)
        trackers.log_samples("s", SAMPLES, step)
    trackers.finish()
    for thread in writers:
        thread.join(PATIENCE)
    said = capsys.readouterr().err
    assert "Traceback" not in said and said.count("warning: tracker 'tensorboard': a thread that it started died: FileNotFoundError") == 1
    assert [r.getMessage().partition(";")[2] for r in caplog.records] == [LEFT_OUT] and len(lines(tmp_path)) == 3


LEFT_OUT = " the run continues without it; metrics.jsonl has all metrics"
