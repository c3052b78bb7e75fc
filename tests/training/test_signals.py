"""What a second signal is."""

import os
import signal

import pytest

from flow_factory import cli
from flow_factory.commands import ending
from flow_factory.utils import signals
from flow_factory.utils.errors import RunError
from flow_factory.utils.signals import Interrupt, Interrupted, Listener, Stopped


def test_a_sigterm_that_comes_twice_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """By two ways, that is, and so at once; a later one means what it says."""
    with Interrupt().watching() as asked:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted, match="SIGTERM"):
            asked.check()
        monkeypatch.setattr(signals, "ECHO", -1.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)


def test_the_second_ctrl_c_stops_at_once() -> None:
    with Interrupt().watching(), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_the_first_one_is_answered_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    with Interrupt().watching():
        signal.raise_signal(signal.SIGINT)
        said = "\nSIGINT: stopping where the run can go on exactly, and saving its state; Ctrl-C again stops at once\n"
        assert capfd.readouterr().err == said


def test_before_a_run_a_signal_ends_the_program_even_if_a_library_takes_it_for_an_error() -> None:
    listener = Listener()
    with listener.watching():
        for name in ("SIGTERM", "SIGINT"):
            with pytest.raises(Stopped, match=name):
                signal.raise_signal(signal.Signals[name])
        with pytest.raises(Stopped, match="SIGINT"):
            listener.check()


def test_long_work_hears_of_another_process_between_its_parts() -> None:
    asked = Interrupt()
    asked.look()
    with asked.watching_others(lambda: True), pytest.raises(Interrupted, match="another process was interrupted"):
        asked.look()
    asked.look()


LOST = RuntimeError("[pair.cc:547] Connection closed by peer [127.0.0.1]:4711")
SIGNAL = "SIGTERM: stopped at once; what is in the run's folder stays as it is\n"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        pytest.param(LOST, 1, "error: lost the connection to another process, which has died\n", id="a process has died"),
        pytest.param(RunError("a reward failed"), 1, "error: a reward failed\n", id="the run failed"),
        pytest.param(ImportError("no such module"), 130, SIGNAL, id="what a library asks for"),
    ],
)
@pytest.mark.parametrize("late", [False, True], ids=["while it ends", "while it is said"])
def test_a_signal_does_not_hide_the_error_that_has_ended_the_program(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, code: int, said: str, late: bool
) -> None:
    """A launcher ends those that are left when one has died: as they close their files, or say what is wrong."""

    def act(*_: object) -> int:
        try:
            raise error
        finally:
            if not late:
                signal.raise_signal(signal.SIGTERM)

    def explain(given: BaseException) -> int:
        if late:
            signal.raise_signal(signal.SIGTERM)
        return told(given)

    told = cli.explain
    monkeypatch.setattr(ending, "SILENT", 0.0)
    monkeypatch.setattr(cli, "load_config", lambda *_: None)
    monkeypatch.setattr(cli, "act", act)
    monkeypatch.setattr(cli, "explain", explain)
    if late and code == 130:  # no signal has come before: its trace is
        with pytest.raises(ImportError, match="no such module"):
            cli.main(["any.yaml"])
    else:
        assert cli.main(["any.yaml"]) == code
        assert capsys.readouterr().err == said
