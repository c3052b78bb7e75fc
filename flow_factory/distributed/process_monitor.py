"""Who of a run's processes is there, and what each is doing, as one of them sees it.

Each process keeps a connection to the first one, which the kernel closes when the process ends, however it ends and whatever holds up its
Python: a death is known to all at once, and one that is busy is told from one that is dead. What each is doing is on the store by which
they met.
"""

import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from flow_factory.distributed.launch import already_reported
from flow_factory.utils.background import busy
from flow_factory.utils.errors import MeetingError, timed_out

if TYPE_CHECKING:
    from torch.distributed import Store


STUCK = 15.0
"""Seconds in which a process whose Python does not move, and of which another has died, ends: a collective may hang for ever then."""
GRACE = 2.0
"""Seconds in which a death, or the failure of a collective, is heard of everywhere."""
START = "its start"
LEFT, FAILED = "left", "failed"
DIED = "lost the connection to another process, which has died"
DISCONNECTED = RuntimeError
"""What a store raises whose server is gone: torch's DistError, which would take a second to import."""
KEEPALIVE = (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4))
"""A machine that has lost its power, or its network, is gone after half a minute."""


class ProcessMonitor:
    """One of the processes, as the others see it, and the others, as it sees them.

    Args:
        store: by which all have met; used by several threads.
        address: of the first process's machine.
        limit: seconds, of a collective: `distributed_timeout`.
    """

    def __init__(self, store: "Store", rank: int, size: int, address: str, limit: float):
        self.store, self.rank, self.size, self.limit = store, rank, size, limit
        self.began = time.monotonic()
        self.now = ""
        """What this process is doing."""
        self.gone: dict[int, str] = {}
        """Those that have ended before the run did: what they said last, "" if nothing."""
        self.connections: list[socket.socket] = []
        self.closing = False
        if rank == 0:
            self._receive()
        else:
            self._join(address)

    def say(self, doing: str) -> None:
        """What this process does from now on."""
        if doing == self.now:
            return
        self.now = doing
        with _host_there():
            self.store.set(f"doing/{self.rank}", f"{time.monotonic() - self.began:.1f} {doing}")

    def doing(self, rank: int) -> str:
        """What a process does, and since when."""
        with suppress(DISCONNECTED):
            what, since = activity_of(self.store, rank)
            return f"{what}, since {max(0.0, time.monotonic() - self.began - since):.0f} s"
        return START

    def who_is_gone(self) -> str | None:
        """Says which process has ended, if any has."""
        if not self.gone:
            return None
        rank, word = next(iter(self.gone.items()))
        how = "has failed; its own message says why. It was at" if word == FAILED else "has died, at"
        return f"process {rank} of {self.size} {how}: {self.doing(rank)}"

    def why(self, error: BaseException) -> str:
        """Says why a collective has failed: who has died, or who did not come to it in time."""
        if timed_out(error):
            with suppress(DISCONNECTED):
                self.store.set(f"failed/{self.rank}", "")
        end = time.monotonic() + GRACE
        while time.monotonic() < end and not self.gone:
            time.sleep(0.05)
        if self.gone or not timed_out(error):
            return self.who_is_gone() or DIED
        return f"a collective has not ended within distributed_timeout: {self.limit:g} s; {self._missing()}"

    def _missing(self) -> str:
        """Those that have not failed as well, if they do something else than this one: the others wait in the same collective."""
        others = [rank for rank in range(self.size) if rank != self.rank]
        with suppress(DISCONNECTED):
            others = [rank for rank in others if not self.store.check([f"failed/{rank}"])] or others
        said = {rank: self.doing(rank) for rank in others}
        away = {rank: what for rank, what in said.items() if what.rpartition(",")[0] != self.now} or said
        few = [f"process {rank} of {self.size} was at: {what}" for rank, what in list(away.items())[:3]]
        return "; ".join(few) + (f"; and {len(away) - 3} more" if len(away) > 3 else "")

    def leave(self, word: str = LEFT) -> None:
        """Before this process ends: that it has done its part, or has said itself what failed."""
        for connection in self.connections:
            with suppress(OSError):
                connection.sendall(f"{word}\n".encode())
        self.closing = self.closing or word == LEFT

    def close(self) -> None:
        """Closes what a forked child would keep open."""
        while self.connections:
            os.close(self.connections.pop().detach())  # `close` would wait for the files that threads read

    # -- connections -----------------------------------------------------------------------------------------------------------

    def _receive(self) -> None:
        dual = socket.has_dualstack_ipv6()
        server = socket.create_server(("", 0), family=socket.AF_INET6 if dual else socket.AF_INET, dualstack_ipv6=dual, backlog=self.size)
        key = secrets.token_hex(8)  # a stranger's connection is nobody's
        self.connections.append(server)
        with _host_there():
            self.store.set("presence", f"{server.getsockname()[1]} {key}")

        def accept() -> None:
            with suppress(OSError):
                while True:
                    _start(self._follow, server.accept()[0], key)

        _start(accept)

    def _follow(self, connection: socket.socket, key: str) -> None:
        """On the first process: the connection of another one, until it closes."""
        _keep_alive(connection)
        last = ""
        with connection.makefile() as lines, suppress(OSError):
            hello, _, number = lines.readline().strip().partition(" ")
            if hello != key:
                return
            self.connections.append(connection)
            for line in lines:
                last = line.strip()
        self._lost(int(number), last)

    def _join(self, address: str) -> None:
        with _host_there():
            port, _, key = self.store.get("presence").decode().partition(" ")
        try:
            connection = socket.create_connection((address, int(port)), timeout=60)
            connection.settimeout(None)
            connection.sendall(f"{key} {self.rank}\n".encode())
        except OSError as error:
            where = f"process 0, at {address}:{port}"
            raise MeetingError(f"process {self.rank} of {self.size} cannot reach {where} ({error.strerror or error})") from error
        _keep_alive(connection)
        self.connections.append(connection)

        def listen() -> None:
            last = ""
            with connection.makefile() as lines, suppress(OSError):
                for line in lines:
                    number, _, word = line.strip().partition(" ")
                    if number.isdecimal():
                        self._lost(int(number), word)
                    else:
                        last = number
            self._lost(0, last)

        _start(listen)

    def _lost(self, rank: int, word: str) -> None:
        """A process has ended; the first one tells the others, and those that the end does not reach end themselves."""
        if word == LEFT or self.closing or rank in self.gone:
            return
        self.gone[rank] = word
        if self.rank == 0:
            for connection in self.connections[1:]:
                with suppress(OSError):
                    connection.sendall(f"{rank} {word}\n".encode())
        if len(self.gone) == 1:
            _start(self._end_if_stuck)

    def _end_if_stuck(self) -> None:
        main, before, since = threading.main_thread().ident, None, time.monotonic()
        while not self.closing:
            frame = sys._current_frames().get(main or 0)
            here = (id(frame), frame and frame.f_lasti)
            if here != before or busy():
                before, since = here, time.monotonic()
            elif time.monotonic() - since > STUCK:
                if not already_reported():
                    print(f"error: {self.who_is_gone()}", file=sys.stderr, flush=True)
                os._exit(1)
            del frame  # which keeps all that is in it alive
            time.sleep(1)


def activity_of(store: "Store", rank: int) -> tuple[str, float]:
    """(what a process has said last that it does, in which second since the meeting)."""
    if not store.check([key := f"doing/{rank}"]):
        return START, 0.0
    since, _, doing = store.get(key).decode().partition(" ")
    return doing, float(since)


@contextmanager
def _host_there() -> Iterator[None]:
    """Around what asks the store."""
    try:
        yield
    except DISCONNECTED as error:
        raise MeetingError("the process that hosts the rendezvous has ended; see its own message") from error


def _start(do: object, *given: object) -> None:
    threading.Thread(target=do, args=given, daemon=True, name="presence").start()  # type: ignore[arg-type]


def _keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE:
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
