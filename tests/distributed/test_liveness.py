"""A process knows which others are alive, and what each is doing; groups have the limit that the config says."""

import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed import HashStore, TCPStore
from torch.distributed.device_mesh import init_device_mesh

from flow_factory.config import load_config
from flow_factory.config.base import ConfigError
from flow_factory.distributed import liveness, process_monitor
from flow_factory.distributed.barriers import Work
from flow_factory.distributed.process_monitor import FAILED, LEFT, ProcessMonitor
from flow_factory.distributed.rendezvous import limit_groups
from flow_factory.utils.errors import ProcessLost, RendezvousError
from tests.tiny.run import free_port, write_run


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[ProcessMonitor]]:
    """Three processes, as they see each other, all in this one, which does not end."""
    monkeypatch.setattr(ProcessMonitor, "_end_if_stuck", lambda self: None)
    store = HashStore()
    everyone = [ProcessMonitor(store, rank, 3, "127.0.0.1", 60) for rank in range(3)]
    soon(lambda: len(everyone[0].connections) == 3)
    yield everyone
    for one in everyone:
        one.leave()
        one.close()


def soon(happens: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not happens():
        assert time.monotonic() < end
        time.sleep(0.01)


def die(one: ProcessMonitor) -> None:
    """As the kernel closes a process's connections, which then tells of nobody else's end."""
    one.closing = True
    for connection in one.connections:
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_death_is_known_to_all_and_told_with_what_was_done(three: list[ProcessMonitor], rank: int) -> None:
    others = [one for one in three if one.rank != rank]
    three[rank].set_activity("scoring")
    assert [one.who_is_gone() for one in three] == [None, None, None]
    die(three[rank])
    for one in others:
        soon(lambda one=one: one.gone)  # type: ignore[misc]
        for said in (one.who_is_gone(), one.why(RuntimeError("Connection closed by peer"))):
            assert re.fullmatch(rf"process {rank} of 3 has died, at: scoring, since \d+ s", said or "")


def test_who_has_done_its_part_or_has_said_what_failed_has_not_died(three: list[ProcessMonitor]) -> None:
    three[1].leave(LEFT)
    die(three[1])
    three[2].leave(FAILED)
    die(three[2])
    soon(lambda: bool(three[0].gone))
    said = three[0].who_is_gone() or ""
    assert said.startswith("process 2 of 3 has failed; see its own message. It was at: its start, since ")


def test_a_stranger_at_the_port_is_nobody(three: list[ProcessMonitor]) -> None:
    port = three[0].connections[0].getsockname()[1]
    for said in (b"", b"wrong 1\n", b"\n\n"):
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(said)
    die(three[2])
    soon(lambda: bool(three[0].gone))
    assert list(three[0].gone) == [2]


def test_a_wait_ends_with_the_death_of_the_one_that_is_waited_for(three: list[ProcessMonitor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liveness, "here", three[0])
    die(three[1])
    with pytest.raises(ProcessLost, match="process 1 of 3 has died"):
        Work("encoding", three[0].store, (0, 3)).wait()


def test_who_joins_a_run_whose_host_has_left_says_so() -> None:
    host = TCPStore("127.0.0.1", free_port(), is_master=True, wait_for_workers=False)
    guest = TCPStore("127.0.0.1", host.port, is_master=False, wait_for_workers=False)
    del host
    with pytest.raises(RendezvousError, match="the process that hosts the rendezvous has ended"):
        ProcessMonitor(guest, 1, 2, "127.0.0.1", 60)


def test_of_a_late_collective_those_are_named_that_do_something_else(three: list[ProcessMonitor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_monitor, "GRACE", 0.0)
    for rank, what in enumerate(("learning", "learning", "scoring")):
        three[rank].set_activity(what)
    late = RuntimeError("[unbound_buffer.cc:78] Timed out waiting 60000ms for recv operation to complete")
    missing = r"process 2 of 3 was at: scoring, since \d+ s"
    assert re.fullmatch(f"a collective has not ended within distributed_timeout: 60 s; {missing}", three[0].why(late))


def test_every_group_has_the_limit() -> None:
    """Those that torch makes by itself, too."""
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    mesh = init_device_mesh("cpu", (1, 1), mesh_dim_names=("a", "b"))
    groups = [dist.group.WORLD, dist.new_group(backend="gloo"), mesh.get_group("a")]
    limit_groups(77)
    for group in groups:
        assert group._get_backend(torch.device("cpu")).options._timeout == timedelta(seconds=77)


def test_the_limit_has_the_name_that_transformers_gives_it_too(tmp_path: Path) -> None:
    file = write_run(tmp_path)
    assert load_config(file).distributed_timeout == 600
    file.write_text(f"ddp_timeout: 40\n{file.read_text()}")
    assert load_config(file).distributed_timeout == 40
    assert load_config(file, ["ddp_timeout=50"]).distributed_timeout == 50
    with pytest.raises(ConfigError, match="1: ddp_timeout: is 40 here and 50 in distributed_timeout; keep one"):
        load_config(file, ["distributed_timeout=50"])
    with pytest.raises(ConfigError, match="override .ddp_timeout=0.: ddp_timeout: must be greater than or equal to 1, got 0"):
        load_config(file, ["ddp_timeout=0"])


@pytest.mark.exhaustive
def test_the_threads_of_gloo_end_with_a_run_that_ended_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they do not, or nothing tells, there is a wait."""
    if liveness._of_gloo():
        pytest.skip("threads of another test's groups are still there")
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    liveness.release_collectives(well=True)
    assert waits == [], "a process alone has none"
    for well, held in ((True, False), (True, True), (False, False)):
        dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
        group = dist.distributed_c10d._get_default_group() if held else None
        dist.all_reduce(torch.ones(2))
        threads = liveness._of_gloo()
        liveness.release_collectives(well)
        assert waits == [liveness.LET_GO] * (held or not well or not threads)
        assert dist.is_initialized() != well
        if threads and well and not held:
            assert liveness._of_gloo() == 0
        if not well:
            dist.destroy_process_group()
        waits.clear()
        del group
