"""Serve the rewards of a YAML over HTTP, for runs that use `reward_model: remote`.

  ff-reward serve rewards.yaml                         a YAML with rewards: and optionally server:, or the YAML of a run
  ff-reward serve rewards.yaml --host 0.0.0.0          reachable from other machines; then set server.token: ${NAME} too
  ff-reward serve rewards.yaml --devices cuda:0 cuda:1 --workers 2

The server answers POST /score/NAME (msgpack or multipart), the older POST /compute, and GET /rewards, /health, /ready and /metrics.
SIGTERM and Ctrl-C end it after the current requests are answered.
"""

from __future__ import annotations

import argparse
import os
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from flow_factory.commands.serving import listening, serve_until_signal
from flow_factory.commands.subcommands import take_rewards
from flow_factory.utils.errors import UserError

if TYPE_CHECKING:
    from flow_factory.config.service import RewardsConfig

HELP = "serve rewards over HTTP, for runs on this or another machine"
PACKAGES = ("fastapi", "uvicorn", "prometheus_client")


def add(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    take_rewards(parser, "server.max_queue=16")
    parser.add_argument("--host", help="address, as server.host")
    parser.add_argument("--port", help="port, as server.port")
    parser.add_argument("--workers", help="processes per device, as server.workers")
    parser.add_argument("--devices", nargs="+", metavar="DEVICE", help="devices, as server.devices: cuda:0 cuda:1")


def overrides_of(args: argparse.Namespace) -> list[str]:
    """The overrides, with those of the flags."""
    flags = {"host": args.host, "port": args.port, "workers": args.workers}
    given = [f"server.{key}={value}" for key, value in flags.items() if value is not None]
    return [*args.overrides, *given, *([f"server.devices=[{', '.join(args.devices)}]"] if args.devices else [])]


def act(args: argparse.Namespace) -> int:
    """Serves until a signal arrives. Returns 0."""
    from flow_factory.config.service import load_rewards_config
    from flow_factory.distributed.threads import set_thread_counts, usable_cores
    from flow_factory.utils.terminal import log_to_terminal

    overrides = overrides_of(args)
    config = load_rewards_config(args.config, overrides)
    if lacking := [name for name in PACKAGES if find_spec(name) is None]:
        raise UserError(f"ff-reward serve needs {' and '.join(lacking)}: pip install 'flow-factory[reward-server]'")
    set_thread_counts(os.environ, usable_cores() / (config.server.workers * len(config.server.devices)))
    log_to_terminal(30)
    return serve(config, str(args.config.resolve()), overrides)


def serve(config: RewardsConfig, path: str, overrides: list[str]) -> int:
    """Raises:
    UserError: the rewards do not load, or the server cannot listen on the address.
    RunError: a worker has died repeatedly.
    """
    import uvicorn

    from flow_factory.rewards.service.app import make_app
    from flow_factory.rewards.service.request_queue import RequestQueue
    from flow_factory.rewards.service.workers import ProcessWorker

    devices = [device for device in config.server.devices for _ in range(config.server.workers)]
    queue = RequestQueue(config.server, [ProcessWorker(path, overrides, device) for device in devices])
    failures: list[BaseException] = []

    def ended(error: BaseException | None) -> None:
        failures.extend([error] if error is not None else [])
        server.should_exit = True

    socket = listening(config.server.host, config.server.port, "server.host, server.port")
    options: dict[str, Any] = {"log_config": None, "access_log": False, "timeout_graceful_shutdown": config.server.grace}
    server = uvicorn.Server(uvicorn.Config(make_app(queue, ended), timeout_keep_alive=75, **options))
    names = ", ".join(entry.name for entry in config.rewards)
    serve_until_signal(server, socket, f"serving {names}", f"{len(devices)} workers")
    if failures:
        raise failures[0]
    return 0
