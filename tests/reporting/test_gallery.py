"""What a run draws of itself: beside the training, and nothing of it is lost."""

import re
import threading
from pathlib import Path

import pytest

from flow_factory.reporting import gallery
from flow_factory.reporting.curves import plot_curves
from flow_factory.reporting.page import store
from flow_factory.reporting.page.write import FILE
from flow_factory.reporting.report import save_grid
from tests.tiny.run import logged, tiny


def test_training_goes_on_while_an_evaluation_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, trained = tiny(tmp_path, "train.max_epochs=1"), threading.Event()
    epoch = run.trainer.epoch

    def noted() -> dict[str, float]:
        metrics = epoch()
        trained.set()
        return metrics

    def patient(*drawn: object) -> None:
        assert trained.wait(60), "the first epoch waits for the pictures of the evaluation before it"
        save_grid(*drawn)

    monkeypatch.setattr(run.trainer, "epoch", noted)
    monkeypatch.setattr(gallery, "save_grid", patient)
    run()
    assert sorted(p.name for p in (run.folder / "samples").glob("eval_*.png")) == ["eval_00000.png", "eval_00001.png"]


def test_a_drawing_that_fails_is_said_once_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*drawn: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(gallery, "save_grid", full)
    summary = tiny(tmp_path, "train.max_epochs=1", r"rewards.name=$\frac$")()
    assert [r.getMessage() for r in caplog.records if "cannot be written" in r.getMessage()] == [
        f"samples of {tmp_path}/save/run cannot be written, and the run continues: OSError: No space left on device"
    ]
    assert "curves.png" in summary, "a name that is no formula is drawn as it is"


BLOCKED = {
    "samples": "file",
    "report": "file",
    "report.html": "folder",
    "curves.png": "folder",
    "before_after.png": "folder",
    "eval_scores.jsonl": "folder",
    "summary.md": "folder",
}


def test_what_is_only_looked_at_may_be_in_the_way_of_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Paths that are of another kind; a tracker of one's own fails too. Training and checkpoints are as ever."""
    run = tiny(tmp_path, "train.max_epochs=1", "log.save_model_only=false", f"log.logging_backend={__name__}.Fails")
    for name, kind in BLOCKED.items():
        (run.folder / name).touch() if kind == "file" else (run.folder / name).mkdir()
    assert run() == ""
    said = "\n".join(r.getMessage() for r in caplog.records)
    for name in ("samples", "report.html", "curves.png", "eval_scores.jsonl", "summary.md"):
        assert re.search(rf"^{name} of {run.folder} cannot be written, and the run continues: \w+Error", said, re.MULTILINE), said
    assert re.search(rf"^report.html of {run.folder} cannot .*: FileExistsError: .*: '{run.folder}/report'$", said, re.MULTILINE), said
    assert said.count("tracker 'tests.reporting.test_gallery.Fails' failed: KeyError: 'mine'") == 1
    assert (run.folder / "checkpoints/epoch_1/state/progress.json").is_file()
    assert [line["step"] for line in logged(run.folder)] == [0, 1, 1]


class Fails:
    """A tracker that the first evaluation ends."""

    def __init__(self, *given: object):
        pass

    def log(self, metrics: object, step: int) -> None:
        raise KeyError("mine")


@pytest.mark.slow
@pytest.mark.parametrize(("seconds", "times"), [(3600.0, 1), (0.0, 3)])
def test_curves_are_drawn_at_the_end_and_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, times: int) -> None:
    """The first evaluation has no curve yet."""
    drawn: list[Path] = []
    monkeypatch.setattr(gallery, "REDRAWN", seconds)
    monkeypatch.setattr(gallery, "plot_curves", lambda metrics, out: [drawn.append(out), plot_curves(metrics, out)])
    run = tiny(tmp_path)
    run()
    assert drawn == [run.folder / "curves.png"] * times and drawn[0].is_file()


def test_the_error_that_ends_a_run_is_on_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, epoch = tiny(tmp_path, "train.max_epochs=2"), iter([{"train/reward_mean": 1.0}])
    monkeypatch.setattr(run.trainer, "epoch", lambda: next(epoch))
    with pytest.raises(StopIteration):
        run()
    assert [(r.kind, r.text) for r in store.remarks(run.folder) if r.kind == "error"] == [("error", "StopIteration: ")]
    assert "StopIteration: " in (run.folder / FILE).read_text("utf-8")
