"""What the commands that serve HTTP have in common: the socket, and the end by a signal."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

from flow_factory.utils.errors import UserError

if TYPE_CHECKING:
    import uvicorn


def listening(host: str, port: int, keys: str) -> Any:
    """The socket, before anything is loaded.

    Args:
        keys: what names the two, for the message.

    Raises:
        UserError: the address cannot be listened on.
    """
    import socket

    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{keys}: cannot listen on {host}:{port}: {reason}; choose another") from error


def serve_until_signal(server: uvicorn.Server, socket: Any, what: str, how: str) -> None:
    """Serves until SIGTERM or Ctrl-C, which end the server and not the program.

    Args:
        what: is printed before the address, `how` after it.
    """

    def end(*_: Any) -> None:
        server.should_exit = True

    # for a signal before uvicorn has its own handlers; and uvicorn raises its signals again when it has ended
    former = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    host, port = socket.getsockname()[:2]
    print(f"{what} at http://{host}:{port}, {how}", flush=True)
    try:
        server.run(sockets=[socket])
    finally:
        socket.close()
        for number, handler in former.items():
            signal.signal(number, handler)
