"""Where the processes of a run are: command line over environment over YAML; and starting them."""

import os
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flow_factory.config import ConfigError, RunConfig
from flow_factory.config.engine import found

FLAGS: dict[str, tuple[type, str]] = {
    "num_processes": (int, "processes over all machines"),
    "num_machines": (int, "machines"),
    "machine_rank": (int, "number of this machine, from 0"),
    "main_process_ip": (str, "address of machine 0"),
    "main_process_port": (int, "port of machine 0"),
}

ENVIRONMENT: dict[str, tuple[str, ...]] = {
    "main_process_ip": ("MASTER_IP", "MASTER_ADDR", "CHIEF_IP"),
    "main_process_port": ("MASTER_PORT",),
    "machine_rank": ("MACHINE_RANK", "NODE_RANK", "INDEX"),
    "num_machines": ("NUM_MACHINES", "NUM_NODES", "HOST_NUM"),
    "gpus_per_machine": ("GPUS_PER_NODE", "HOST_GPU_NUM"),
}


@dataclass(frozen=True)
class Placement:
    """How many processes, and where they meet."""

    num_processes: int
    num_machines: int
    machine_rank: int
    main_process_ip: str
    main_process_port: int
    inside: bool
    """Whether this already is one of them."""


def told_processes(flags: Mapping[str, Any], environment: Mapping[str, str]) -> int | None:
    """How many processes the command line or the environment asks for; None leaves it to the YAML. Inside a worker: how many there are.

    Raises:
        ConfigError: an environment value that is no number.
    """
    if _inside(environment):
        return int(environment["WORLD_SIZE"])
    if flags.get("num_processes") is not None:
        return int(flags["num_processes"])
    per_machine = _number("gpus_per_machine", environment, 0)
    return (flags.get("num_machines") or _number("num_machines", environment, 1)) * per_machine or None


def place(config: RunConfig, flags: Mapping[str, Any], environment: Mapping[str, str]) -> Placement:
    """Command line > environment > YAML.

    Raises:
        ConfigError: an environment value that is no number, or processes that do not divide over the machines.
    """
    given = {k: v for k, v in flags.items() if v is not None}
    machines = given.get("num_machines") or _number("num_machines", environment, 1)
    processes = config.num_processes
    if processes % machines:
        raise ConfigError(f"{processes} processes do not divide over {machines} machines; use {machines * max(1, processes // machines)}")
    return Placement(
        num_processes=processes,
        num_machines=machines,
        machine_rank=given.get("machine_rank", _number("machine_rank", environment, 0)),
        main_process_ip=given.get("main_process_ip") or _told("main_process_ip", environment) or "127.0.0.1",
        main_process_port=given.get("main_process_port", _number("main_process_port", environment, config.main_process_port)),
        inside=_inside(environment),
    )


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


def _inside(environment: Mapping[str, str]) -> bool:
    return "LOCAL_RANK" in environment and "WORLD_SIZE" in environment


def _told(key: str, environment: Mapping[str, str]) -> str | None:
    return next((environment[name] for name in ENVIRONMENT[key] if environment.get(name)), None)


def _number(key: str, environment: Mapping[str, str], default: int) -> int:
    value = _told(key, environment)
    if value is None:
        return default
    if not value.isdigit():
        raise ConfigError(f"the environment's {' or '.join(ENVIRONMENT[key])} is {value!r}; it must be a whole number")
    return int(value)


def launch(placement: Placement, config_file: str | None, arguments: Sequence[str]) -> int:
    """Starts `python -m flow_factory ARGUMENTS` in this machine's processes and waits: 0, or the exit code of the first that failed.

    GPUs go through `accelerate launch`, which knows FSDP and DeepSpeed by `config_file`. On a CPU it would start one process only, so
    there it is torch's own launcher.
    """
    import torch
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    file = found(config_file) if config_file else None
    os.environ["PYTHONPATH"] = os.pathsep.join(p for p in (os.environ.get("PYTHONPATH"), str(Path.cwd())) if p)
    try:
        if torch.cuda.is_available():
            _accelerate(placement, file, arguments)
        else:
            if file is not None:
                print(f"note: {file} is for accelerators; on a CPU the processes are plain data parallel", file=sys.stderr)
            _torchrun(placement, arguments)
    except SignalException:  # passed on to them, and they have ended
        return 130
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        if failure.exitcode == 130:
            return 130
        print(
            f"error: process {rank} of {placement.num_processes} stopped with exit code {failure.exitcode}; its message is above",
            file=sys.stderr,
        )
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    return 0


def _accelerate(placement: Placement, config_file: Path | None, arguments: Sequence[str]) -> None:
    from accelerate.commands.launch import launch_command, launch_command_parser

    where = {flag: str(getattr(placement, flag)) for flag in FLAGS}
    command = [word for flag, value in where.items() for word in (f"--{flag}", value)]
    command += ["--config_file", str(config_file)] if config_file else ["--multi_gpu", "--mixed_precision", "no"]
    launch_command(launch_command_parser().parse_args([*command, "--module", "flow_factory", *arguments]))


def _torchrun(placement: Placement, arguments: Sequence[str]) -> None:
    from torch.distributed.run import get_args_parser, run

    port = placement.main_process_port
    if placement.num_machines == 1 and _taken(port):
        port = 0  # another run on this machine; any free port will do
    command = [
        f"--nproc_per_node={placement.num_processes // placement.num_machines}", f"--nnodes={placement.num_machines}",
        f"--node_rank={placement.machine_rank}", f"--master_addr={placement.main_process_ip}", f"--master_port={port}",
    ]  # fmt: skip
    run(get_args_parser().parse_args([*command, "--module", "flow_factory", *arguments]))


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
