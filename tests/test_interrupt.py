"""What a second signal is."""

import os
import signal

import pytest

from flow_factory import interrupt
from flow_factory.interrupt import Interrupt, Interrupted


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
