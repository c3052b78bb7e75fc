"""Work and waiting are told apart, and the process that the others wait for is named."""

import logging
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator

from flow_factory.distributed import barriers
from flow_factory.rewards.stream import ScoringStream
from flow_factory.training import meter
from flow_factory.training.learner import Learner
from flow_factory.training.meter import Meter
from flow_factory.training.rollout import RolloutCollector
from flow_factory.training.run import Run
from flow_factory.training.slowest import PhaseCost, Slowest, lagging
from tests.tiny.several import several

HOSTS = ["node1", "node1", "node2", "node2"]


def spent(*work: float, shared: tuple[float, ...] = ()) -> PhaseCost:
    """Of a phase in which processes work so long; of it, some time in what they end together."""
    columns = [work, [0.0] * len(work), shared or [0.0] * len(work), [0.0] * len(work), [0.0] * len(work)]
    return PhaseCost.of(torch.tensor(columns, dtype=torch.float64).T)


def test_what_all_end_together_is_waiting_but_for_the_least_of_it() -> None:
    """Three reach the reduction of a gradient after 10 seconds, and wait 5 for the fourth there; the reduction itself takes 1."""
    found = spent(16.0, 16.0, 16.0, 16.0, shared=(6.0, 6.0, 6.0, 1.0))
    assert found.work.tolist() == [11.0, 11.0, 11.0, 16.0] and found.wait.tolist() == [5.0, 5.0, 5.0, 0.0]


def test_waiting_is_no_work_of_the_phase_that_it_is_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(barriers, "_waited", 0.0)
    now = iter([0.0, 0.0, 10.0, 30.0, 100.0])
    monkeypatch.setattr(meter.time, "perf_counter", lambda: next(now))
    seen = Meter(Accelerator(cpu=True))
    with seen.phase("rollout"):
        barriers._waited += 1
        with seen.phase("reward"):
            barriers._waited += 5
        barriers._waited += 2
    here = {phase: (h.work, h.wait) for phase, h in seen.here.items()}
    assert here == {"reward": (15.0, 5.0), "rollout": (77.0, 3.0)}


@pytest.mark.parametrize(("work", "who"), [
    ((10, 10, 13, 10), 2), ((10, 10, 11.9, 10), None), ((10, 10, 10, 10), None), ((10,), None), ((0, 0, 0.3, 0), None), ((20, 10), 0),
])  # fmt: skip
def test_one_lags_that_takes_a_fifth_longer_than_the_others(work: tuple[float, ...], who: int | None) -> None:
    found = lagging(torch.tensor(work, dtype=torch.float64), least=1.0)
    assert (found and found[0]) == who


def heard(
    caplog: pytest.LogCaptureFixture, team: int, *epochs: dict[str, PhaseCost], parts: dict[str, list[int]] | None = None
) -> list[str]:
    slowest, said = Slowest(team), []
    for number, epoch in enumerate(epochs):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            slowest.look(epoch, HOSTS, parts or {})
        said += [f"{number} {line}" for line in caplog.messages]
    return said


def test_it_is_named_when_it_lags_again_and_more_seldom_then(caplog: pytest.LogCaptureFixture) -> None:
    said = heard(caplog, 1, *[{"rollout": spent(10, 10, 15, 10), "optimise": spent(5, 5, 5, 5)}] * 9)
    assert [line[0] for line in said] == ["1", "3", "7"]
    text = "process 2 of 4, on node2, is the slowest in the rollout phase: 15 s of work, and 10 s elsewhere, 2 times in a row"
    assert said[0] == f"1 {text}; the others wait for it"


@pytest.mark.parametrize(("epochs", "lines"), [
    ([(10, 10, 15, 10), (15, 10, 10, 10), (10, 15, 10, 10)], 0),  # now one, now another
    ([(10, 10, 15, 10), (10, 10, 10, 10), (10, 10, 15, 10)], 0),
    ([(100, 100, 200, 100)], 1),  # by more than a minute: at once
])  # fmt: skip
def test_what_comes_once_is_no_line_but_where_it_is_long(
    caplog: pytest.LogCaptureFixture, epochs: list[tuple[float, ...]], lines: int
) -> None:
    assert len(heard(caplog, 1, *({"rollout": spent(*work)} for work in epochs))) == lines


def test_nobody_lags_who_has_more_to_do_or_speaks_for_a_team(caplog: pytest.LogCaptureFixture) -> None:
    rows = {"eval": spent(20, 10, 10, 10)}
    assert heard(caplog, 1, rows, rows, parts={"eval": [2, 1, 1, 1]}) == []
    assert len(heard(caplog, 1, rows, rows)) == 1
    judged = {"reward": spent(10, 0, 15, 0)}
    assert [line[:14] for line in heard(caplog, 2, judged, judged)] == ["1 process 2 of"]
    equal = {"reward": spent(10, 0, 10, 0), "save": spent(9, 1, 1, 1)}
    assert heard(caplog, 2, equal, equal) == [], "the first of a team scores for all of it, and the main process writes for all"


class Clock:
    """Which the second process's is ahead of, a hundred seconds more with each thing that takes it long."""

    ahead = 0.0

    @classmethod
    def perf_counter(cls) -> float:
        return time.perf_counter() + cls.ahead


SLOW = {"rollout": (RolloutCollector, "sample"), "reward": (ScoringStream, "add"), "optimise": (Learner, "velocity_of")}


def dawdle(rank: int) -> None:
    """The second process takes longer for one thing of each phase, in the run of its name."""
    meter.time = Clock  # type: ignore[assignment]
    for phase, (owner, name) in SLOW.items():
        bare = getattr(owner, name)

        def slow(self: Any, *given: Any, phase: str = phase, bare: Any = bare, **named: Any) -> Any:
            if rank == 1 and Path(f"now_{phase}").exists():
                Clock.ahead += 100
            return bare(self, *given, **named)

        setattr(owner, name, slow)


def epochs_of(run: Run) -> list[str]:
    """What is said of two epochs."""
    Path(f"now_{run.folder.name}").touch()
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("flow_factory.training.slowest").addHandler(handler)
    for _ in range(2):
        run.trainer.epoch()
    dist.barrier()
    Path(f"now_{run.folder.name}").unlink(missing_ok=True)
    return lines


@pytest.mark.slow
def test_of_two_processes_the_slower_one_is_named(tmp_path: Path) -> None:
    keys = ("train.unique_sample_num_per_epoch=4", "eval.eval_freq=0", "train.num_inference_steps=2", "train.gradient_step_per_epoch=1")
    found: Any = several(tmp_path, 2, dict.fromkeys(SLOW, keys), epochs_of, dawdle)
    for phase, (main, other) in found.items():
        text = rf"process 1 of 2, on \S+, is the slowest in the {phase} phase: .* min of work, and \S+ s elsewhere(, 2 times in a row)?; .*"
        assert len(main) == 2 and all(re.fullmatch(text, line) for line in main), main
        assert other == []
