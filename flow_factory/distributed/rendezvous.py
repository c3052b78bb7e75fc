"""The rendezvous of machines and of processes. After a timeout it names the missing ones."""

import os
import queue
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import DistError, Store, TCPStore

from flow_factory.distributed.environment import set_interface
from flow_factory.distributed.liveness import start_monitor
from flow_factory.utils.errors import RendezvousError
from flow_factory.utils.terminal import note


@dataclass(frozen=True)
class Rendezvous:
    """One participant of a rendezvous."""

    what: str
    """`machine` or `process`."""
    number: int
    count: int
    address: str
    port: int
    timeout: int
    """Timeout in seconds."""
    attempt: str = "0"
    """The number of the restart. Participants of different restarts do not meet."""

    def __str__(self) -> str:
        return f"{self.what} {self.number} of {self.count} at {self.address}:{self.port}"


def meet(place: Rendezvous, hosts: bool) -> Store:
    """Waits until all participants have joined.

    Args:
        hosts: whether this process serves the store. One participant, or their launcher, must do so.

    Returns:
        A store that all share as long as its host is alive.

    Raises:
        RendezvousError: the timeout has passed, the port is in use, or two participants have the same number.
    """
    deadline = time.monotonic() + place.timeout
    store = enter(place, hosts)
    keys = [f"{place.what}/{place.attempt}/{k}" for k in range(place.count)]
    try:
        if store.add(keys[place.number], 1) > 1:
            raise RendezvousError(f"{place}: another process has this rank, or this one was restarted while the others continued")
        while not store.check(keys):
            if time.monotonic() > deadline:
                missing = ", ".join(str(k) for k, key in enumerate(keys) if not store.check([key]))
                raise RendezvousError(f"{place}: waited {place.timeout} s, but these did not join: {missing}")
            time.sleep(0.2)
    except DistError as error:
        raise RendezvousError(f"{place}: {place.what} 0 left before all had joined; see its own message") from error
    return store


def enter(place: Rendezvous, hosts: bool, look: Callable[[], None] = lambda: None) -> TCPStore:
    """Connects to the store of the rendezvous without waiting for the others.

    Args:
        hosts: whether this process serves the store.
        look: called while nobody serves it. An exception in it ends the waiting.

    Raises:
        RendezvousError: nobody serves it within the timeout, or the port is in use.
    """
    if not hosts:
        _wait_for_host(place, time.monotonic() + place.timeout, look)
    return _connect(place, hosts)


def _wait_for_host(place: Rendezvous, deadline: float, look: Callable[[], None]) -> None:
    """Waits until the port accepts connections. Torch itself would print each attempt with a stack trace."""
    while True:
        try:
            with socket.create_connection((place.address, place.port), timeout=max(0.1, deadline - time.monotonic())):
                return
        except OSError as error:
            if time.monotonic() > deadline:
                raise RendezvousError(
                    f"{place}: waited {place.timeout} s, and nothing answers ({error.strerror or error}); was number 0 started, "
                    "and are address and port (--main_process_ip, --main_process_port) correct?"
                ) from error
            look()
            time.sleep(0.2)


def _connect(place: Rendezvous, hosts: bool) -> TCPStore:
    """Connects in a thread that may be abandoned: if another program listens on the port and stays silent, torch waits for ever."""
    box: queue.Queue[TCPStore | DistError] = queue.Queue()
    address = "127.0.0.1" if hosts else place.address  # the host may not be able to resolve its own name
    timeout = timedelta(seconds=place.timeout)

    def connect() -> None:
        try:
            box.put(TCPStore(address, place.port, place.count, hosts, timeout, wait_for_workers=False, multi_tenant=True))
        except DistError as error:
            box.put(error)

    threading.Thread(target=connect, daemon=True).start()
    try:
        found = box.get(timeout=place.timeout + 10)  # torch exceeds its timeout a little
    except queue.Empty:
        raise RendezvousError(f"{place}: another program listens there; set --main_process_port to a free port") from None
    if isinstance(found, DistError):
        why = str(found).splitlines()[0].rpartition("message: ")[2]
        raise RendezvousError(f"{place}: {why}; set --main_process_port to a free port, the same for all") from found
    return found


def join_group(limit: float) -> None:
    """Initialises torch's default process group, whatever launcher started this process. It does nothing for a single process.

    Torch's own initialisation would give a restarted process the addresses of dead ones, and would use the timeout of the start for every
    later exchange.

    Args:
        limit: the timeout of a collective in seconds.

    Raises:
        RendezvousError: see `meet`.
    """
    environment = os.environ
    count = int(environment.get("WORLD_SIZE", "1"))
    if count == 1 or dist.is_initialized():
        return
    number, attempt = int(environment["RANK"]), environment.get("TORCHELASTIC_RESTART_COUNT", "0")
    hosts = number == 0 and environment.get("TORCHELASTIC_USE_AGENT_STORE") != str(True)  # else the launcher serves it
    timeout = int(environment.get("FF_RENDEZVOUS_TIMEOUT", "600"))
    place = Rendezvous("process", number, count, environment["MASTER_ADDR"], int(environment["MASTER_PORT"]), timeout, attempt)
    store, another = meet(place, hosts), _connect(place, hosts)  # a second connection for threads, since a group may block the first
    if (line := set_interface(environment)) is not None and environment.get("LOCAL_RANK") == "0":
        note(line)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    start_monitor(dist.PrefixStore(attempt_key(attempt), another), number, count, place.address, limit)
    ours = dist.PrefixStore(attempt_key(attempt), store)
    dist.init_process_group(backend, timeout=timedelta(seconds=limit), store=ours, rank=number, world_size=count)


def attempt_key(number: object) -> str:
    """The prefix of the store's keys for one start or restart."""
    return f"attempt_{number}"


def limit_groups(limit: float) -> None:
    """Sets the timeout of all groups of this process, because groups of libraries have torch's default.

    Args:
        limit: the timeout of a collective in seconds.
    """
    if dist.is_initialized():
        for group in list(dist.distributed_c10d._world.pg_map):
            dist.distributed_c10d._set_pg_timeout(timedelta(seconds=limit), group)
