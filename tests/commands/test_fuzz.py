"""Files that are damaged at random: what reads them takes them, or refuses them in one line, soon, and changes nothing.

The examples of the fast part are always the same. Those marked exhaustive are others, of the seed that they print (`FUZZ_SEED=7` is 7, and
`FUZZ_TIMES` how many times more there are). A failure shows its input, which becomes a plain test where it belongs.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from flow_factory.utils.errors import UserError
from tests.tiny.damage import Format
from tests.tiny.formats import FORMATS

LIMIT = 5.0
"""Seconds of computing that one example may take; on a busy machine they are not seconds of the clock."""
LONGEST = 3000
"""Characters of a message."""


def refusal(read: Callable[[], Any], several: bool = False) -> str | None:
    """What a user sees of a file: None where it is taken.

    Raises:
        AssertionError: more than a line, or a line that a terminal cannot show.
        TimeoutError: no end is seen.
    """
    try:
        with soon():
            read()
    except UserError as error:
        lines = str(error).split("\n") if several else [str(error)]
        assert all(line.isprintable() and line.strip() for line in lines), lines
        assert max(map(len, lines)) < LONGEST, lines
        return str(error)
    return None


@contextmanager
def soon() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"no end after {LIMIT} s of computing")

    former = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, LIMIT, 0.1)  # again and again: what is raised in a callback of the collector is lost
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, former)


def fuzz(kind: Format, examples: int, number: int | None = None) -> None:
    common: dict[str, Any] = {
        "deadline": None,
        "database": None,
        "suppress_health_check": list(HealthCheck),
        "phases": [Phase.generate, Phase.shrink],
    }

    @settings(max_examples=examples, derandomize=number is None, **common)
    @given(kind.damaged)
    def one(damaged: Any) -> None:
        refusal(lambda: kind.read(damaged), kind.lines)

    (one if number is None else seed(number)(one))()


@pytest.mark.parametrize("kind", FORMATS, ids=lambda kind: kind.__name__)
def test_damaged_files_are_taken_or_refused_in_a_line(tmp_path: Path, kind: Callable[[Path], Format]) -> None:
    fuzz(kind(tmp_path), FORMATS[kind] // 2)


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", FORMATS, ids=lambda kind: kind.__name__)
def test_more_damaged_files_are_taken_or_refused_in_a_line(tmp_path: Path, kind: Callable[[Path], Format]) -> None:
    number, times = int(os.environ.get("FUZZ_SEED", "1")), int(os.environ.get("FUZZ_TIMES", "5"))
    print(f"FUZZ_SEED={number}")
    fuzz(kind(tmp_path), times * FORMATS[kind], number)
