"""The launchers of several machines, here threads over a real store: they meet at one attempt, whoever asks for a restart, and however."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from torch.distributed.elastic.rendezvous.api import RendezvousGracefulExitError

from flow_factory.cli import main
from flow_factory.config import load_config
from flow_factory.distributed import machines as module
from flow_factory.distributed.machines import Machines
from flow_factory.distributed.rendezvous import Rendezvous
from flow_factory.distributed.topology import Topology
from flow_factory.runs import ended
from flow_factory.runs.ended import has_ended
from flow_factory.utils.errors import RendezvousError
from tests.tiny.run import free_port, write_run

RESTARTS = 4


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OFTEN", 0.01)
    monkeypatch.setattr(module, "SILENT", 0.3)


class Two:
    """Two machines' launchers, either of which may die and be started anew."""

    def __init__(self) -> None:
        self.port, self.pool = free_port(), ThreadPoolExecutor(4)
        self.first, self.second = self.launcher(0), self.launcher(1)
        self.meet()

    def launcher(self, number: int, told: str = "--num_processes 2", restarts: int = RESTARTS) -> Machines:
        return Machines(Rendezvous("machine", number, 2, "127.0.0.1", self.port, 60), restarts, 60, told)

    def start(self, *launchers: Machines) -> list["Future[None]"]:
        return [self.pool.submit(one.meet) for one in launchers]

    def meet(self) -> None:
        for done in self.start(self.first, self.second):
            done.result(60)

    @property
    def attempts(self) -> tuple[int, int]:
        return self.first.attempt, self.second.attempt


@pytest.fixture
def two() -> Iterator[Two]:
    found = Two()
    yield found
    found.pool.shutdown(wait=False, cancel_futures=True)


def test_who_has_failed_twice_meets_who_has_failed_once(two: Two) -> None:
    """Each counts for itself no more: the second attempt of one would wait for the first of the other."""
    assert two.attempts == (0, 0)
    (early,) = two.start(two.second)  # its processes have died; those of the first go on
    while not two.first.num_nodes_waiting():
        assert not early.done()
    two.first.meet()
    early.result(60)
    assert two.attempts == (1, 1)
    assert two.first.left == two.second.left == RESTARTS - 1
    (early,) = two.start(two.second)  # and again, and it asks for the next attempt before the first has come to this one
    while not two.first.num_nodes_waiting():
        pass
    two.first._request_start(two.first.store, 3)  # type: ignore[arg-type]
    two.first.meet()
    early.result(60)
    assert two.attempts == (3, 3)


def test_a_launcher_that_was_started_anew_joins(two: Two) -> None:
    started_anew(two)


def started_anew(two: Two) -> None:
    """The second launcher, whose former process gives no sign of life any more, joins the first."""
    two.second = two.launcher(1)
    (new,) = two.start(two.second)
    while not two.first.num_nodes_waiting():
        assert not new.done()
    two.first.meet()
    new.result(60)
    assert two.attempts == (1, 1)


def test_the_number_outlives_machine_0(two: Two) -> None:
    """Its store goes with it; the one that is left knows how far they were."""
    two.meet()
    assert two.attempts == (1, 1)
    two.first.store = two.first = None  # type: ignore[assignment]
    two.first = two.launcher(0)
    while not two.second.num_nodes_waiting():
        pass
    two.meet()
    assert two.attempts == (2, 2)


def test_two_that_live_and_have_one_number_are_told(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENT", 60)  # on a busy machine a thread may be silent for long
    stop = threading.Event()

    def live() -> None:
        while not stop.wait(0.02):
            two.second.num_nodes_waiting()

    alive = two.pool.submit(live)
    with pytest.raises(RendezvousError, match="machine 1 of 2 at .*: another process has this rank"):
        two.launcher(1).meet()
    stop.set()
    alive.result(60)
    with pytest.raises(RendezvousError, match="another process has this rank, or this one was restarted while the others continued"):
        two.launcher(1, restarts=0).meet()


def test_restarts_are_counted_together_and_end(two: Two) -> None:
    for _ in range(RESTARTS):
        two.meet()
    assert two.first.left == two.second.left == 0
    with pytest.raises(RendezvousError, match=f"another restart is needed, but --max_restarts {RESTARTS} are used up"):
        two.launcher(1).meet()


def test_machines_that_were_started_otherwise_are_told(two: Two) -> None:
    two.second = two.launcher(1, "--num_processes 4")
    for done in two.start(two.first, two.second):
        with pytest.raises(RendezvousError, match="machine [01] was started with --num_processes [24], and this one with --num_processes"):
            done.result(60)


def test_who_is_done_waits_for_the_others_and_a_late_one_hears_it(two: Two) -> None:
    assert not two.first.all_done()
    with pytest.raises(RendezvousGracefulExitError, match="the run has ended"):
        two.launcher(1).meet()
    assert two.first.all_done() and two.second.all_done()
    left = two.pool.submit(two.first.leave)
    two.second.leave()
    left.result(60)


@pytest.mark.parametrize("others", ["have left", "have left with the store", "go on", "are started anew"])
def test_a_process_that_died_after_the_run_had_ended_is_not_started_anew(two: Two, others: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAVING", 0.0)
    mine, other = (two.second, two.first) if others == "have left with the store" else (two.first, two.second)
    mine.ended = lambda: True
    if others.startswith("have left"):
        other.store = None
    late = two.start(two.launcher(1)) if others == "are started anew" else []
    with pytest.raises(RendezvousGracefulExitError, match="the run has ended"):
        mine.meet()
    if others == "go on":
        assert other.num_nodes_waiting() and not other.all_done()
        late = two.start(other)
    for one in late:
        with pytest.raises(RendezvousGracefulExitError, match="the run has ended"):
            one.result(60)


def test_machine_0_that_leaves_as_the_run_ends_is_not_waited_for(two: Two) -> None:
    """The other one asked for a restart while the run was in its last steps."""
    late = two.start(two.second)
    while not two.first.num_nodes_waiting():
        pass
    two.first.store = two.first = None  # type: ignore[assignment]
    assert not late[0].done()
    two.second.ended = lambda: True
    with pytest.raises(RendezvousGracefulExitError, match="the run has ended"):
        late[0].result(20)


@pytest.mark.parametrize("number", [0, 1])
def test_a_launcher_that_is_started_as_the_run_ends_does_not_wait_for_who_has_left(
    two: Two, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It found no end when it began: of the former one, the processes had ended before the main one."""
    monkeypatch.setattr(module, "LEAVING", 0.0)
    two.first.store = two.second.store = two.first = two.second = None  # type: ignore[assignment]
    new = two.launcher(number)
    late = two.start(new)
    time.sleep(0.3)
    assert not late[0].done()
    new.ended = lambda: True
    with pytest.raises(RendezvousGracefulExitError, match="the run has ended"):
        late[0].result(20)


def test_a_machine_that_is_done_before_the_main_process_can_be_needed_again(two: Two) -> None:
    """Its launcher is killed, and started anew, before the main process has ended: that may die, too."""
    assert not two.second.all_done()
    started_anew(two)


def test_who_dies_after_the_run_has_ended_is_not_waited_for(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not two.first.all_done(), "the run may have to go on"
    two.first.ended = lambda: True
    beats = iter([True, False])
    monkeypatch.setattr(module, "_lives", lambda *who: next(beats))
    assert not two.first.all_done(), "it lives, and is not done"
    assert two.first.all_done(), "it is dead"


def test_a_launcher_that_is_started_anew_after_the_run_has_ended_waits_for_nobody(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was killed on its way out; those of the other machines have left."""
    keys = ("log.save_model_only=false", "model.resume_path=auto")
    config, place = load_config(write_run(tmp_path), keys), Topology(2, 2, 0, "127.0.0.1", 29500, False)
    run = tmp_path / "save" / "run"
    assert not has_ended(config, place)
    for epoch in (1, 2):
        state = run / "checkpoints" / f"epoch_{epoch}" / "state"
        state.mkdir(parents=True)
        assert not has_ended(config, place)
    (run / "summary.md").touch()
    assert has_ended(config, place)
    where = ("--num_machines", "2", "--num_processes", "2", "--machine_rank", "0", "--main_process_ip", "127.0.0.1")
    looks, look = [], ended.why_over
    monkeypatch.setattr(ended, "why_over", lambda config: looks.append(1) or look(config))
    assert main([str(tmp_path / "tiny.yaml"), *keys, *where]) == 0
    assert len(looks) == 1, "its files are read once"
    assert "save/run is complete, and train.max_epochs is 2: nothing is left to do" in capsys.readouterr().err
    longer = load_config(tmp_path / "tiny.yaml", [*keys, "train.max_epochs=3"])
    fresh = load_config(tmp_path / "tiny.yaml", keys[:1])
    assert not has_ended(longer, place) and not has_ended(fresh, place) and not has_ended(config, replace(place, num_machines=1))
    assert has_ended(fresh, replace(place, max_restarts=1))
