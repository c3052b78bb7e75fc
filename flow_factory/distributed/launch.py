"""Starting the processes of a run, by torch's elastic launcher."""

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
from flow_factory.utils.errors import MeetingError

if TYPE_CHECKING:
    from flow_factory.distributed.machines import Machines

LAUNCHER = "FF_LAUNCHER"
"""The launcher's process, for those that it starts."""
PR_SET_PDEATHSIG = 1
"""Of Linux's prctl: the signal that comes when the parent dies."""


def already_reported() -> bool:
    """Whether another of this machine's processes has said what is wrong; if not, this one is to, and the others will hear True.

    They find the same thing wrong, or lose the connection when one has left.
    """
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")  # in a folder for each process; the one above is shared
    if error_file is None:
        return False
    try:
        (Path(error_file).parents[1] / "said").touch(exist_ok=False)
    except FileExistsError:
        return True
    return False


def going_on(config: RunConfig, max_restarts: int) -> list[str]:
    """The override by which a restarted process goes on where the run stopped.

    Raises:
        ConfigError: it could not.
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
        limit: seconds, of one collective.
        ended: asked before a restart: whether the run has all its epochs.

    Raises:
        ConfigError: more processes than GPUs.
        MeetingError: the other machines did not come, or the first has left.
    """
    import torch
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    from flow_factory.distributed.agent import run_processes

    here = placement.num_processes // placement.num_machines
    if torch.cuda.is_available() and here > (gpus := torch.cuda.device_count()):
        text = f"{here} processes on this machine, which has {gpus} GPU{'s' * (gpus != 1)}"
        raise ConfigError(f"{text}; set --num_processes {gpus * placement.num_machines}, or say more machines (--num_machines, or srun)")
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "3600")  # seconds from SIGTERM to SIGKILL: a large state takes long to save
    os.environ[LAUNCHER] = str(os.getpid())
    os.environ[MAIN] = placement.main_process_ip
    machines = _machines(placement, limit, ended)
    try:
        run_processes(machines, here, ["-u", "-c", worker(), *arguments])
    except SignalException:  # passed on to them, and they have ended
        return 130
    except ChildFailedError as failed:
        return _complaint(placement, failed, machines)
    except DistError as error:
        where = f"{placement.main_process_ip}:{placement.main_process_port}"
        raise MeetingError(f"the launcher lost machine 0 at {where} ({str(error).splitlines()[0]})") from error
    return 0


def _machines(placement: Topology, limit: float, ended: Callable[[], bool]) -> "Machines":
    from flow_factory.distributed.machines import Machines
    from flow_factory.distributed.rendezvous import Rendezvous

    machines, timeout = placement.num_machines, placement.rendezvous_timeout
    port = placement.main_process_port if machines > 1 else _free(placement.main_process_port)
    place = Rendezvous("machine", placement.machine_rank, machines, placement.main_process_ip, port, timeout)
    told = f"--num_processes {placement.num_processes} --max_restarts {placement.max_restarts}"
    return Machines(place, placement.max_restarts, timeout + limit, told, ended)


def stay_with_launcher() -> None:
    """In a process of a launcher: it dies with it, however that ends, so that it is in nobody's way when the launcher is started anew.

    Linux alone can; elsewhere it goes on until it misses the store.
    """
    launcher = os.environ.pop(LAUNCHER, None)  # which is not that of programs that this one starts
    if launcher is None or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        os.kill(int(launcher), 0)
    except ProcessLookupError:  # before this process could ask for it
        os._exit(1)


def worker() -> str:
    """The program of a process: this very package, with neither the current folder nor the package's own in front of Python's modules."""
    home = str(Path(flow_factory.__file__).parents[1])
    return f"import sys; sys.path[0] = {home!r}; import flow_factory; del sys.path[0]; from flow_factory.cli import main; sys.exit(main())"


def _complaint(placement: Topology, failed: Any, machines: "Machines") -> int:
    """Says which process failed first, and what it was doing, and returns its exit code."""
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
    """What a process has told the others before it was killed.

    Args:
        aborted: whether it has ended itself, as NCCL does where a collective takes too long: then also what others do, if it is another
            thing.
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
    """The port, or any free one where another run on this machine has it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server will: a port whose last owner just left is free
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
