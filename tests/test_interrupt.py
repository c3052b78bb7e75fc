"""What a second signal is."""

import os
import signal

import pytest

from flow_factory import interrupt
from flow_factory.interrupt import Interrupt, Interrupted, Listener, Stopped


def test_a_sigterm_that_comes_twice_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """By two ways, that is, and so at once; a later one means what it says."""
    with Interrupt().watching() as asked:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted, match="SIGTERM"):
            asked.check()
        monkeypatch.setattr(interrupt, "ECHO", -1.0)
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
