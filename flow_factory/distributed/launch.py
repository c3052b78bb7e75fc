"""The start of a run's processes by torch's elastic launcher."""

import ctypes
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flow_factory
from flow_factory.config import ConfigError, RunConfig
from flow_factory.config.model import AUTO
from flow_factory.config.rules import resume_is_whole
from flow_factory.distributed.environment import MAIN
from flow_factory.distributed.topology import Topology
from flow_factory.utils.counting import counted
from flow_factory.utils.errors import RendezvousError

if TYPE_CHECKING:
    from flow_factory.distributed.machines import Machines

LAUNCHER = "FF_LAUNCHER"
"""The variable with the process id of the launcher, for the processes that it starts."""
PR_SET_PDEATHSIG = 1
"""Option of Linux's prctl: the signal that a process gets when its parent dies."""


def already_reported() -> bool:
    """Whether another process of this machine has reported an error. The first caller gets False and must report its own.

    The others find the same error, or lose the connection to the first.
    """
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")  # each process has its own folder; the parent folder is shared
    if error_file is None:
        return False
    try:
        (Path(error_file).parents[1] / "said").touch(exist_ok=False)
    except FileExistsError:
        return True
    return False


def restart_overrides(config: RunConfig, max_restarts: int) -> list[str]:
    """The override with which a restarted process resumes the run.

    Raises:
        ConfigError: the config does not allow a restart.
    """
    if not max_restarts:
        return []
    path, log = config.model.resume_path, config.log
    if path is not None and path != AUTO and Path(path).resolve() != Path(log.save_dir, log.run_name or "").resolve():
        raise ConfigError(f"--max_restarts: a restart goes on from this run's own folder, and model.resume_path is {path}; leave one out")
    auto = config.model_copy(update={"model": config.model.model_copy(update={"resume_path": AUTO})})
    for problem in resume_is_whole(auto):
        raise ConfigError(f"--max_restarts: a restart needs model.resume_path: auto, and {problem.text}")
    return [f"model.resume_path={AUTO}"] if path is None else []


def launch(placement: Topology, arguments: Sequence[str], limit: float, ended: Callable[[], bool] = lambda: False) -> int:
    """Starts `ff-train ARGUMENTS` in this machine's processes and waits: 0, or the exit code of the first that failed.

    Args:
        limit: the timeout of a collective in seconds.
        ended: called before a restart; returns whether the run has nothing left to do.

    Raises:
        ConfigError: more processes than GPUs.
        RendezvousError: other machines did not join, or machine 0 has left.
    """
    import torch
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    from flow_factory.distributed.agent import run_processes

    here = placement.num_processes // placement.num_machines
    if torch.cuda.is_available() and here > (gpus := torch.cuda.device_count()):
        text = f"{here} processes on this machine, which has {counted(gpus, 'GPU')}"
        raise ConfigError(f"{text}; set --num_processes {gpus * placement.num_machines}, or name more machines (--num_machines, or srun)")
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "3600")  # seconds from SIGTERM to SIGKILL: a large state takes long to save
    os.environ[LAUNCHER] = str(os.getpid())
    os.environ[MAIN] = placement.main_process_ip
    machines = _machines(placement, limit, ended)
    try:
        run_processes(machines, here, ["-u", "-c", worker(), *arguments])
    except SignalException:  # it was forwarded to the processes, and they have ended
        return 130
    except ChildFailedError as failed:
        return _complaint(placement, failed, machines)
    except DistError as error:
        where = f"{placement.main_process_ip}:{placement.main_process_port}"
        raise RendezvousError(f"the launcher lost machine 0 at {where} ({str(error).splitlines()[0]})") from error
    return 0


def _machines(placement: Topology, limit: float, ended: Callable[[], bool]) -> "Machines":
    from flow_factory.distributed.machines import Machines
    from flow_factory.distributed.rendezvous import Rendezvous

    machines, timeout = placement.num_machines, placement.rendezvous_timeout
    port = placement.main_process_port if machines > 1 else _free(placement.main_process_port)
    place = Rendezvous("machine", placement.machine_rank, machines, placement.main_process_ip, port, timeout)
    arguments = f"--num_processes {placement.num_processes} --max_restarts {placement.max_restarts}"
    return Machines(place, placement.max_restarts, timeout + limit, arguments, ended)


def stay_with_launcher() -> None:
    """Makes a process die with its launcher, however that ends, so that it does not block a new start.

    This works on Linux. Elsewhere the process runs until it needs the store.
    """
    launcher = os.environ.pop(LAUNCHER, None)  # not inherited by programs that this process starts
    if launcher is None or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        os.kill(int(launcher), 0)
    except ProcessLookupError:  # the launcher died before the call
        os._exit(1)


def worker() -> str:
    """The program of a process: this package, with neither the current folder nor the package's own folder first on Python's path."""
    home = str(Path(flow_factory.__file__).parents[1])
    return f"import sys; sys.path[0] = {home!r}; import flow_factory; del sys.path[0]; from flow_factory.cli import main; sys.exit(main())"


def _complaint(placement: Topology, failed: Any, machines: "Machines") -> int:
    """Prints which process failed first and its last activity, and returns its exit code."""
    rank, failure = failed.get_first_failure()
    if failure.exitcode == 130:
        return 130
    times = machines.attempt
    restarts = f" after {times} restart{'s' * (times > 1)}" if times else ""
    code, who = failure.exitcode, f"process {rank} of {placement.num_processes}"
    if code < 0:
        at = _doing(placement, rank, machines, aborted=code == -signal.SIGABRT)
        print(f"error: {who} was killed by {signal.Signals(-code).name}{restarts}{at}", file=sys.stderr)
        return 128 - code
    print(f"error: {who} stopped with exit code {code}{restarts}; its message is above", file=sys.stderr)
    return code


def _doing(placement: Topology, rank: int, machines: "Machines", aborted: bool) -> str:
    """The last activity of a process before it was killed.

    Args:
        aborted: whether the process has aborted, as NCCL does after a timeout. Then differing activities of others are added.
    """
    from torch.distributed import DistError, PrefixStore

    from flow_factory.distributed.process_monitor import activity_of
    from flow_factory.distributed.rendezvous import attempt_key

    if machines.store is None:
        return ""
    store = PrefixStore(attempt_key(machines.attempt), machines.store)
    with suppress(DistError):
        known = {k: activity_of(store, k)[0] for k in (range(placement.num_processes) if aborted else [rank])}
        others = [f"; process {k} was at: {what}" for k, what in known.items() if what != known[rank]]
        return f", at: {known[rank]}{''.join(others[:3])}"
    return ""


def _free(port: int) -> int:
    """The port, or any free one if another run on this machine uses it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does: a port is free once its last owner has left
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
