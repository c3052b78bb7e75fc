"""Bars on a terminal that follow its size, plain lines where there is none, a banner, and no remarks of the libraries."""

import fcntl
import logging
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from flow_factory.training.banner import aligned, banner
from flow_factory.utils import terminal
from flow_factory.utils.terminal import Epochs, bar, format_duration, log_to_terminal, note, print_output, quiet_libraries
from tests.tiny.run import ROOT, environment, ff_train, tiny, write_run


@pytest.mark.slow
def test_without_a_terminal_there_is_a_line_an_epoch_and_no_remark_of_a_library(tmp_path: Path) -> None:
    write_run(tmp_path)
    done = ff_train("tiny.yaml", "train.max_epochs=3", cwd=tmp_path)
    lines = done.stderr.splitlines()
    assert done.returncode == 0 and "\r" not in done.stderr
    epochs = [line for line in lines if line.startswith("epoch ")]
    assert [line.split(":")[0] for line in epochs] == ["epoch 1 of 3", "epoch 2 of 3", "epoch 3 of 3"]
    assert re.search(r"reward -?[\d.]+.*s/epoch [\d.]+; \d+ s left$", epochs[0]) and "left" not in epochs[-1]
    assert lines[0].startswith("run      ") and not [line for line in lines if "WARNING" in line or "Warning" in line], done.stderr
    titles = [line.split()[0] for line in lines[:7]]
    assert titles == ["run", "model", "trained", "device", "plan", "weights", "watch"]
    assert all(line.startswith(("epoch ", "evaluation after epoch ")) for line in lines[7:]), done.stderr


def test_the_banner_says_what_is_trained_and_which_weights_are_kept(tmp_path: Path) -> None:
    run = tiny(tmp_path)
    said = aligned(banner(run))
    many = sum(p.numel() for p in run.context.policy.trained().values()) / 1e6
    assert (
        f"a LoRA of rank {run.context.config.model.lora_rank} for transformer: {many:.3g} M parameters" in said
        and f"{run.folder}\n" in said
    )
    assert "grpo, 2 epochs of 8 samples (2 groups of 4) and 2 optimiser steps; 4 test rows" in said
    average = r"\(ema_decay: 0.9, less in the first epochs\); at the end, after 2 epochs, \d+ % of it is still the initial weights"
    assert re.search(rf"weights  evaluated and saved: .*{average}", said)


def test_our_warnings_are_heard_and_the_libraries_are_not(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    log_to_terminal(logging.WARNING)
    quiet_libraries()
    for name in ("torchao.kernel", "torch.utils._pytree", "flow_factory.runs.rows", "my_rewards"):
        logging.getLogger(name).warning("of %s", name)
    logging.getLogger("torchao").error("broken")
    said = capfd.readouterr().err.splitlines()
    assert said == ["WARNING of flow_factory.runs.rows", "WARNING of my_rewards", "ERROR broken"]


def test_notes_and_our_warnings_are_remembered_for_the_page_of_a_run(capfd: pytest.CaptureFixture[str]) -> None:
    with terminal.remembering():
        note("one thing", "another")
        logging.getLogger("flow_factory.runs.rows").warning("of %s", "rows")
        logging.getLogger("torchao.kernel").warning("no kernel")
        logging.getLogger("flow_factory").info("detail")
        kept = [(remark.kind, remark.text) for remark in terminal.REMARKS]
    assert kept[-3:] == [("note", "one thing"), ("note", "another"), ("warning", "of rows")] and not terminal.REMARKS


@pytest.mark.parametrize(("seconds", "said"), [(0.4, "0 s"), (99, "99 s"), (100, "2 min"), (5940, "99 min"), (12000, "3 h 20 min")])
def test_a_span_is_said_in_the_unit_that_fits(seconds: float, said: str) -> None:
    assert format_duration(seconds) == said


def test_long_work_is_a_line_a_minute_without_a_terminal(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 25))
    monkeypatch.setattr(terminal.time, "monotonic", lambda: next(clock))
    assert list(bar(range(8), "encoding rows")) == list(range(8))
    said = capfd.readouterr().err.splitlines()
    assert said and all(re.fullmatch(r"encoding rows: [1-7] of 8, \d+ s each, \d+ \w+ left", line) for line in said)
    assert list(bar(range(8), "encoding rows", shown=False)) == list(range(8)) and not capfd.readouterr().err


BARS = """
import sys, time
from flow_factory.utils.terminal import Epochs
with Epochs(10, 0) as bar:
    for k in range(10):
        if k == 5:
            sys.stdin.readline()  # until the terminal is narrower
        time.sleep(0.11)  # longer than tqdm's interval between two lines
        bar.show_epoch({"train/reward_mean": 0.5, "time/epoch_s": 0.1})
"""


@pytest.mark.slow
def test_a_bar_follows_a_terminal_that_is_made_narrower() -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    child = subprocess.Popen([sys.executable, "-c", BARS], stdin=subprocess.PIPE, stderr=theirs, env=environment(), cwd=ROOT)
    os.close(theirs)
    assert child.stdin is not None
    shown = b""
    while True:
        try:
            piece = os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
        shown += piece
        if b"/10" in shown and not child.stdin.closed:
            fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 50, 0, 0))
            child.stdin.close()
    assert child.wait() == 0 and child.stdin.closed
    widths = [len(line.rstrip()) for line in shown.decode().split("\r")]
    assert max(widths[:3]) > 50 and max(widths[-5:]) <= 50


def test_the_bar_is_off_and_silent_on_other_processes(capfd: pytest.CaptureFixture[str]) -> None:
    with Epochs(2, 0, shown=False) as bar:
        bar.show_epoch({"train/reward_mean": 1.0})
    assert not capfd.readouterr().err


def test_a_reader_that_has_left_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in `ff-train --help-config | head`."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as out:  # noqa: PTH123
        monkeypatch.setattr(sys, "stdout", out)
        print_output("line\n" * 10)
        monkeypatch.undo()
