"""What a run draws of itself: beside the training, and nothing of it is lost."""

import threading
from pathlib import Path

import pytest

from flow_factory import gallery
from flow_factory.report import plot_curves, save_grid
from tests.tiny.run import tiny


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
    assert [r.getMessage() for r in caplog.records if "cannot be drawn" in r.getMessage()] == [
        f"samples of {tmp_path}/save/run cannot be drawn, and the run goes on: OSError: No space left on device"
    ]
    assert "curves.png" in summary, "a name that is no formula is drawn as it is"


@pytest.mark.parametrize(("seconds", "times"), [(3600.0, 1), (0.0, 3)])
def test_curves_are_drawn_at_the_end_and_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, times: int) -> None:
    """The first evaluation has no curve yet."""
    drawn: list[Path] = []
    monkeypatch.setattr(gallery, "REDRAWN", seconds)
    monkeypatch.setattr(gallery, "plot_curves", lambda metrics, out: [drawn.append(out), plot_curves(metrics, out)])
    run = tiny(tmp_path)
    run()
    assert drawn == [run.folder / "curves.png"] * times and drawn[0].is_file()
