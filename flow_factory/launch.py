"""Starting the processes of a run, by torch's elastic launcher."""

import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import flow_factory
from flow_factory.config import ConfigError, RunConfig
from flow_factory.config.model import AUTO
from flow_factory.config.rules import resume_is_whole
from flow_factory.errors import MeetingError
from flow_factory.placement import Placement


def said() -> bool:
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


def launch(placement: Placement, arguments: Sequence[str]) -> int:
    """Starts `ff-train ARGUMENTS` in this machine's processes and waits: 0, or the exit code of the first that failed.

    Raises:
        ConfigError: more processes than GPUs.
        MeetingError: the other machines did not come, or the first has left.
    """
    import torch
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    here = placement.num_processes // placement.num_machines
    if torch.cuda.is_available() and here > (gpus := torch.cuda.device_count()):
        text = f"{here} processes on this machine, which has {gpus} GPU{'s' * (gpus != 1)}"
        raise ConfigError(f"{text}; set --num_processes {gpus * placement.num_machines}, or say more machines (--num_machines, or srun)")
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "3600")  # seconds from SIGTERM to SIGKILL: a large state takes long to save
    try:
        store, port = _serve(placement)
        _elastic(placement, here, port, arguments)
    except SignalException:  # passed on to them, and they have ended
        return 130
    except ChildFailedError as failed:
        return _complaint(placement, failed, store)
    except DistError as error:
        where = f"{placement.main_process_ip}:{placement.main_process_port}"
        raise MeetingError(f"the launcher lost machine 0 at {where} ({str(error).splitlines()[0]})") from error
    return 0


def _serve(placement: Placement) -> tuple[Any, int]:
    """The store by which the machines meet, which torch's own of machine 0 shares its server with, and its port."""
    from flow_factory.meeting import Meeting, meet

    machines, number = placement.num_machines, placement.machine_rank
    port = placement.main_process_port if machines > 1 else _free(placement.main_process_port)
    place = Meeting("machine", number, machines, placement.main_process_ip, port, placement.rendezvous_timeout)
    return meet(place, hosts=number == 0), port


def _elastic(placement: Placement, here: int, port: int, arguments: Sequence[str]) -> None:
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    machines, number, timeout = placement.num_machines, placement.machine_rank, placement.rendezvous_timeout
    address = placement.main_process_ip if number else "127.0.0.1"  # whether or not it knows its own name
    config = LaunchConfig(
        machines, machines, here, run_id="flow-factory", rdzv_backend="static", rdzv_endpoint=f"{address}:{port}",
        rdzv_configs={"rank": number, "timeout": timeout}, max_restarts=placement.max_restarts,
    )  # fmt: skip
    elastic_launch(config, sys.executable)("-u", "-c", worker(), *arguments)


def worker() -> str:
    """The program of a process: this very package, with neither the current folder nor the package's own in front of Python's modules."""
    home = str(Path(flow_factory.__file__).parents[1])
    return f"import sys; sys.path[0] = {home!r}; import flow_factory; del sys.path[0]; from flow_factory.cli import main; sys.exit(main())"


def _complaint(placement: Placement, failed: Any, store: Any) -> int:
    """Says which process failed first, and what it was doing, and returns its exit code."""
    rank, failure = failed.get_first_failure()
    if failure.exitcode == 130:
        return 130
    times = placement.max_restarts
    restarts = f" after {times} restart{'s' * (times > 1)}" if times else ""
    code, who = failure.exitcode, f"process {rank} of {placement.num_processes}"
    if code < 0:
        at = _doing(placement, rank, store, aborted=code == -signal.SIGABRT)
        print(f"error: {who} was killed by {signal.Signals(-code).name}{restarts}{at}", file=sys.stderr)
        return 128 - code
    print(f"error: {who} stopped with exit code {code}{restarts}; its message is above", file=sys.stderr)
    return code


def _doing(placement: Placement, rank: int, store: Any, aborted: bool) -> str:
    """What a process has told the others before it was killed.

    Args:
        aborted: whether it has ended itself, as NCCL does where a collective takes too long: then also what others do, if it is another
            thing.
    """
    from torch.distributed import DistError, PrefixStore

    from flow_factory.meeting import attempt_key
    from flow_factory.presence import told

    with suppress(DistError):
        last = next((n for n in range(placement.max_restarts, -1, -1) if store.check([f"{attempt_key(n)}/presence"])), 0)
        known = {k: told(PrefixStore(attempt_key(last), store), k)[0] for k in (range(placement.num_processes) if aborted else [rank])}
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
