"""The number and place of a run's processes, from the command line, the environment or the YAML, in this order. Without torch."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flow_factory.config import ConfigError, RunConfig

FLAGS: dict[str, tuple[type, str]] = {
    "num_processes": (int, "number of processes over all machines"),
    "num_machines": (int, "number of machines"),
    "machine_rank": (int, "index of this machine, from 0"),
    "main_process_ip": (str, "address of machine 0"),
    "main_process_port": (int, "port of machine 0"),
    "rendezvous_timeout": (
        int,
        "seconds that machines and processes wait for each other at the start (600); for later, see distributed_timeout in the YAML",
    ),
    "max_restarts": (int, "restarts of all processes, from the last checkpoint, after one has died (0)"),
}

ENVIRONMENT: dict[str, tuple[str, ...]] = {
    "main_process_ip": ("MASTER_IP", "MASTER_ADDR", "CHIEF_IP", "PET_MASTER_ADDR"),
    "main_process_port": ("MASTER_PORT", "PET_MASTER_PORT"),
    "machine_rank": ("MACHINE_RANK", "NODE_RANK", "INDEX", "PET_NODE_RANK", "GROUP_RANK"),
    "num_machines": ("NUM_MACHINES", "NUM_NODES", "HOST_NUM", "PET_NNODES", "GROUP_WORLD_SIZE"),
    "gpus_per_machine": ("GPUS_PER_NODE", "HOST_GPU_NUM", "PET_NPROC_PER_NODE", "LOCAL_WORLD_SIZE"),
    "rendezvous_timeout": ("FF_RENDEZVOUS_TIMEOUT",),
    "max_restarts": ("PET_MAX_RESTARTS",),
}
"""Setting -> environment variables. PET_* is of torch's launcher and Kubeflow. An empty value and `auto` count as unset."""

SLURM_STEP = ("SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_NODES", "SLURM_STEP_NODELIST", "SLURM_NODEID", "SLURM_JOB_ID")
"""Variables that `srun` sets. In a shell of `salloc` or `sbatch` some are missing, and the others do not describe this process."""


@dataclass(frozen=True)
class Topology:
    """The number of processes, their rendezvous, and its timeout."""

    num_processes: int
    num_machines: int
    machine_rank: int
    main_process_ip: str
    main_process_port: int
    inside: bool
    """Whether this process is already one of them, started by another launcher."""
    rendezvous_timeout: int = 600
    """Timeout in seconds."""
    max_restarts: int = 0


@dataclass(frozen=True)
class Setting:
    """The value of a setting and its source: a flag, or an environment variable."""

    value: str
    by: str


def requested_processes(flags: Mapping[str, Any], environment: Mapping[str, str]) -> int | None:
    """The number of processes by the command line or the environment; None leaves it to the YAML. In a worker: the present number.

    Raises:
        ConfigError: a value is not a number, or a flag contradicts the present number.
    """
    settings = _settings(flags, environment)
    if _inside(environment):
        there = _number({"processes": Setting(environment["WORLD_SIZE"], "WORLD_SIZE")}, "processes", 1, least=1)
        if "num_processes" in settings and _number(settings, "num_processes", 1) != there:
            raise ConfigError(
                f"--num_processes is {settings['num_processes'].value}, and this is one of {there} that run already; leave it out"
            )
        return there
    if "num_processes" in settings:
        return _number(settings, "num_processes", 1)
    return _number(settings, "num_machines", 1, least=1) * _number(settings, "gpus_per_machine", 0) or None


def overrides_of(flags: Mapping[str, Any], environment: Mapping[str, str], written: Sequence[str]) -> list[str]:
    """The overrides with `num_processes`, if it is set: in front of them from the environment, or behind them from a flag.

    Raises:
        ConfigError: see `requested_processes`.
    """
    requested = requested_processes(flags, environment)
    count = [] if requested is None else [f"num_processes={requested}"]
    last = flags.get("num_processes") is not None or _inside(environment)
    return [*written, *count] if last else [*count, *written]


def resolve_topology(config: RunConfig, flags: Mapping[str, Any], environment: Mapping[str, str], starts: bool = True) -> Topology:
    """The topology. The command line has precedence over the environment, and the environment over the YAML.

    Args:
        starts: whether the processes will be started. A plan for several machines needs no address.

    Raises:
        ConfigError: a value is not a number, out of range or missing, or the processes do not divide over the machines.
    """
    settings = _settings(flags, environment)
    port = _number(settings, "main_process_port", config.main_process_port, most=65535)
    timeout = _number(settings, "rendezvous_timeout", 600, least=1)
    address = settings["main_process_ip"].value if "main_process_ip" in settings else "127.0.0.1"
    if _inside(environment):
        if flags.get("max_restarts"):
            raise ConfigError("--max_restarts: this process was started by another launcher, and only that one can restart it")
        return Topology(config.num_processes, 1, 0, address, port, True, timeout)
    machines = _number(settings, "num_machines", config.num_machines, least=1)
    if machines > 1 and starts:
        _require_place(settings, machines, port)
    if config.num_processes % machines:
        right = machines * max(1, config.num_processes // machines)
        raise ConfigError(f"{config.num_processes} processes cannot be divided evenly over {machines} machines; use {right}")
    rank = _number(settings, "machine_rank", 0)
    if rank >= machines:
        raise ConfigError(
            f"{settings['machine_rank'].by} is {rank}, and {machines} machine{'s count from 0' if machines > 1 else ' is 0'}; "
            f"set --machine_rank, or --num_machines and NUM_NODES in the environment"
        )
    return Topology(config.num_processes, machines, rank, address, port, False, timeout, _number(settings, "max_restarts", 0))


def srun_task(flags: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, str]:
    """Torch's environment variables for a process that `srun` started as one of several on its machine; empty for any other.

    Raises:
        ConfigError: the machines have different numbers of tasks.
    """
    if _inside(environment) or not _in_step(environment):
        return {}
    tasks, nodes = int(environment["SLURM_STEP_NUM_TASKS"]), int(environment["SLURM_STEP_NUM_NODES"])
    if tasks <= nodes:
        return {}
    if tasks % nodes:
        raise ConfigError(f"srun started {tasks} tasks on {nodes} machines; give each the same number by --ntasks-per-node")
    settings = _settings(flags, environment)
    port = _number(settings, "main_process_port", 0, least=1, most=65535)
    return {
        "RANK": environment["SLURM_PROCID"], "LOCAL_RANK": environment["SLURM_LOCALID"],
        "WORLD_SIZE": str(tasks), "LOCAL_WORLD_SIZE": str(tasks // nodes),
        "MASTER_ADDR": settings["main_process_ip"].value, "MASTER_PORT": str(port),
    }  # fmt: skip


def first_host(nodelist: str) -> str:
    """The first host of Slurm's short form: `gpu[003-010,12],login1` -> `gpu003`."""
    name = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodelist)
    if name is None:
        raise ConfigError(f"SLURM_STEP_NODELIST is {nodelist!r}; it must name machines")
    return re.sub(r"\[([^,\-\]]+)[^\]]*\]", r"\1", name[0])


def _inside(environment: Mapping[str, str]) -> bool:
    return "LOCAL_RANK" in environment and "WORLD_SIZE" in environment


def _in_step(environment: Mapping[str, str]) -> bool:
    return all(environment.get(name) for name in SLURM_STEP)


def _settings(flags: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, Setting]:
    by_name = {
        key: Setting(environment[name], name)
        for key, names in ENVIRONMENT.items()
        for name in reversed(names)  # the first name has precedence
        if environment.get(name) not in (None, "", "auto")
    }
    by_flag = {key: Setting(str(flags[key]), f"--{key}") for key in FLAGS if flags.get(key) is not None}
    return _by_slurm(environment) | by_name | by_flag


def _by_slurm(environment: Mapping[str, str]) -> dict[str, Setting]:
    """The settings of an `srun` step. The port is computed from the job id: jobs rarely share it, and it is below the ephemeral ports."""
    if not _in_step(environment):
        return {}
    job = _number({"job": Setting(environment["SLURM_JOB_ID"], "SLURM_JOB_ID")}, "job", 0)
    settings = {
        "num_machines": Setting(environment["SLURM_STEP_NUM_NODES"], "SLURM_STEP_NUM_NODES"),
        "machine_rank": Setting(environment["SLURM_NODEID"], "SLURM_NODEID"),
        "main_process_ip": Setting(first_host(environment["SLURM_STEP_NODELIST"]), "SLURM_STEP_NODELIST"),
        "main_process_port": Setting(str(20000 + job % 10000), "SLURM_JOB_ID"),
    }
    for name in ("SLURM_GPUS_ON_NODE", "SLURM_GPUS_PER_NODE"):
        if value := environment.get(name):
            counts = [part.rpartition(":")[2] for part in value.split(",")]  # `8`, `h100:8`, `h100:4,a100:2`
            count = str(sum(map(int, counts))) if all(map(str.isdecimal, counts)) else value
            return settings | {"gpus_per_machine": Setting(count, name)}
    return settings


def _require_place(settings: Mapping[str, Setting], machines: int, port: int) -> None:
    who = settings["num_machines"].by if "num_machines" in settings else "num_machines in the YAML"
    for key, what in (("main_process_ip", "where machine 0 is"), ("machine_rank", "which one this is")):
        if key not in settings:
            raise ConfigError(
                f"{machines} machines ({who}), and nothing says {what}; set --{key}, or {ENVIRONMENT[key][1]} in the environment"
            )
    if port == 0:
        raise ConfigError(f"{machines} machines ({who}) need a port that all of them know; set --main_process_port, e.g. 29500")


def _number(settings: Mapping[str, Setting], key: str, default: int, least: int = 0, most: int | None = None) -> int:
    if key not in settings:
        return default
    value, by = settings[key].value, settings[key].by
    if not re.fullmatch("[0-9]+", value) or int(value) < least or (most is not None and int(value) > most):
        wanted = f" from {least}" + (f" to {most}" if most is not None else "") if least or most is not None else ""
        raise ConfigError(f"{by} is {value!r}; it must be a whole number{wanted}")
    return int(value)
