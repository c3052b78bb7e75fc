"""Rendezvous of machines and of processes; within a bounded time it names the missing ones."""

import os
import queue
import socket
import threading
import time
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import DistError, Store, TCPStore

from flow_factory.distributed.environment import settle_interface
from flow_factory.distributed.liveness import start_monitor
from flow_factory.utils.errors import MeetingError
from flow_factory.utils.terminal import note


@dataclass(frozen=True)
class Rendezvous:
    """One of several at a place."""

    what: str
    """machine or process"""
    number: int
    count: int
    address: str
    port: int
    timeout: int
    """In seconds."""
    attempt: str = "0"
    """Which restart this is: those of different ones do not meet."""

    def __str__(self) -> str:
        return f"{self.what} {self.number} of {self.count} at {self.address}:{self.port}"


def meet(meeting: Rendezvous, hosts: bool) -> Store:
    """Waits until all are there.

    Args:
        hosts: whether this process serves the place; one of them has to, or their launcher.

    Returns:
        What they tell each other by, as long as the host lives.

    Raises:
        MeetingError: after `timeout` seconds, or sooner where the port is taken or two have the same number.
    """
    deadline = time.monotonic() + meeting.timeout
    store = enter(meeting, hosts)
    keys = [f"{meeting.what}/{meeting.attempt}/{k}" for k in range(meeting.count)]
    try:
        if store.add(keys[meeting.number], 1) > 1:
            raise MeetingError(f"{meeting}: another one has this rank, or was started again while the others continued")
        while not store.check(keys):
            if time.monotonic() > deadline:
                missing = ", ".join(str(k) for k, key in enumerate(keys) if not store.check([key]))
                raise MeetingError(f"{meeting}: waited {meeting.timeout} s, and these did not come: {missing}")
            time.sleep(0.2)
    except DistError as error:
        raise MeetingError(f"{meeting}: {meeting.what} 0 left before all had come; its own message says why") from error
    return store


def enter(meeting: Rendezvous, hosts: bool) -> TCPStore:
    """The store of the place, whoever else is there.

    Args:
        hosts: whether this process serves it.

    Raises:
        MeetingError: nobody does after `timeout` seconds; or the port is taken.
    """
    if not hosts:
        _knock(meeting, time.monotonic() + meeting.timeout)
    return _connect(meeting, hosts)


def _knock(meeting: Rendezvous, deadline: float) -> None:
    """Waits until somebody listens: here torch would print every try, with a trace."""
    while True:
        try:
            with socket.create_connection((meeting.address, meeting.port), timeout=max(0.1, deadline - time.monotonic())):
                return
        except OSError as error:
            if time.monotonic() > deadline:
                raise MeetingError(
                    f"{meeting}: waited {meeting.timeout} s, and nobody is there ({error.strerror or error}); was number 0 started, "
                    "and are address and port (--main_process_ip, --main_process_port) its own?"
                ) from error
            time.sleep(0.2)


def _connect(meeting: Rendezvous, hosts: bool) -> TCPStore:
    """In a thread that may be left behind: where a stranger listens and keeps silent, torch waits for its answer without end."""
    box: queue.Queue[TCPStore | DistError] = queue.Queue()
    address = "127.0.0.1" if hosts else meeting.address  # whether or not the host knows its own name
    timeout = timedelta(seconds=meeting.timeout)

    def connect() -> None:
        try:
            box.put(TCPStore(address, meeting.port, meeting.count, hosts, timeout, wait_for_workers=False, multi_tenant=True))
        except DistError as error:
            box.put(error)

    threading.Thread(target=connect, daemon=True).start()
    try:
        found = box.get(timeout=meeting.timeout + 10)  # torch overruns a little
    except queue.Empty:
        raise MeetingError(f"{meeting}: another program listens there; set --main_process_port to a free port") from None
    if isinstance(found, DistError):
        why = str(found).splitlines()[0].rpartition("message: ")[2]
        raise MeetingError(f"{meeting}: {why}; set --main_process_port to a free port, the same for all") from found
    return found


def join_group(limit: float) -> None:
    """Makes this process one of torch's default group, whoever started it; nothing where it is alone.

    Torch would do so by itself, but a restarted process would then find the addresses of the dead, and the time to wait for a start would
    be that of every later exchange too.

    Args:
        limit: seconds, of one collective.

    Raises:
        MeetingError: as `meet`.
    """
    environment = os.environ
    count = int(environment.get("WORLD_SIZE", "1"))
    if count == 1 or dist.is_initialized():
        return
    number, attempt = int(environment["RANK"]), environment.get("TORCHELASTIC_RESTART_COUNT", "0")
    hosts = number == 0 and environment.get("TORCHELASTIC_USE_AGENT_STORE") != str(True)  # else the launcher does
    timeout = int(environment.get("FF_RENDEZVOUS_TIMEOUT", "600"))
    meeting = Rendezvous("process", number, count, environment["MASTER_ADDR"], int(environment["MASTER_PORT"]), timeout, attempt)
    store, another = meet(meeting, hosts), _connect(meeting, hosts)  # for threads, which a group's own use of the first may keep waiting
    if (line := settle_interface(environment)) is not None and environment.get("LOCAL_RANK") == "0":
        note(line)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    start_monitor(dist.PrefixStore(attempt_key(attempt), another), number, count, meeting.address, limit)
    ours = dist.PrefixStore(attempt_key(attempt), store)
    dist.init_process_group(backend, timeout=timedelta(seconds=limit), store=ours, rank=number, world_size=count)


def attempt_key(number: object) -> str:
    """Under which the processes of a start, or of a restart, tell each other things."""
    return f"attempt_{number}"


def limit_groups(limit: float) -> None:
    """Gives the limit to all groups that this process is in: those that libraries made have torch's own.

    Args:
        limit: seconds, of one collective.
    """
    if dist.is_initialized():
        for group in list(dist.distributed_c10d._world.pg_map):
            dist.distributed_c10d._set_pg_timeout(timedelta(seconds=limit), group)
