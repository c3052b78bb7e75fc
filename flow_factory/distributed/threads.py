"""The number of threads of a process, and how they wait, told to OpenMP before torch loads it. Standard library alone."""

import math
import os
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path

COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
WAITING = ("OMP_WAIT_POLICY", "GOMP_", "KMP_")
"""What a user's own variables begin with."""
SPINS = "1000"
"""Turns of a loop, some tens of microseconds, for which a thread waits before it sleeps. GNU's OpenMP, which torch's wheels have, turns
300000 times: nothing on an idle machine, and on a busy one most of what the thread that is waited for could have had
(benchmarks/README.md)."""
OWN_LAUNCHER = "flow-factory"
"""TORCHELASTIC_RUN_ID of this program's launcher, which sets no threads but by `settle`."""
OURS = "FF_THREADS"
"""The count that this program chose, so that processes it starts choose their own."""


def settle(environment: MutableMapping[str, str], cores: float | None = None) -> None:
    """Sets OpenMP's number of threads and how long they spin, where the user has set neither; to be called before torch is imported.

    Args:
        cores: that all processes of this machine may use, by default `usable_cores()`.
    """
    if by_torchrun(environment):
        del environment["OMP_NUM_THREADS"]
    if all(environment.get(name) in (None, environment.get(OURS)) for name in COUNTS):
        own = "SLURM_CPUS_PER_TASK" in environment  # such a task has its cores for itself
        share = (usable_cores() if cores is None else cores) / (1 if own else processes_here(environment))
        environment["OMP_NUM_THREADS"] = environment[OURS] = str(max(1, math.floor(share + 0.5)))
    if not any(name.startswith(WAITING) for name in environment):
        environment["GOMP_SPINCOUNT"] = SPINS


def usable_cores(root: Path = Path("/")) -> float:
    """Cores by affinity and by the quotas of the process's cgroups: in a container often fewer than the machine has, and not whole."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([float(allowed), *_quotas(root)])


def processes_here(environment: Mapping[str, str]) -> int:
    """How many of the run's processes this machine has."""
    said = environment.get("LOCAL_WORLD_SIZE", "")
    return max(1, int(said)) if said.isdecimal() else 1


def by_torchrun(environment: Mapping[str, str], parent: Path | None = None) -> bool:
    """Whether torchrun (or accelerate, which starts processes by it) says one thread, and the user has said nothing to it.

    Args:
        parent: the environment that the launcher was started with, as Linux shows it.
    """
    if (
        environment.get("TORCHELASTIC_RUN_ID", OWN_LAUNCHER) == OWN_LAUNCHER
        or environment.get("OMP_NUM_THREADS") != "1"
        or OURS in environment
    ):
        return False
    try:
        given = (parent or Path(f"/proc/{os.getppid()}/environ")).read_bytes().split(b"\0")
    except OSError:
        return False
    return not any(entry.startswith(b"OMP_NUM_THREADS=") for entry in given)


def _quotas(root: Path) -> Iterator[float]:
    """Of the cgroups of this process and of those above them, of either version, as far as they are visible here."""
    for folder, top in _groups(root):
        for group in (folder, *folder.parents):
            if (quota := _quota(group)) is not None:
                yield quota
            if group == top:
                break


def _quota(group: Path) -> float | None:
    """Cores of one group; None without a limit."""
    if (file := group / "cpu.max").is_file():
        most, period = file.read_text().split()
    elif (file := group / "cpu.cfs_quota_us").is_file():
        most, period = file.read_text().strip(), (group / "cpu.cfs_period_us").read_text().strip()
    else:
        return None
    return None if most in ("max", "-1") else int(most) / int(period)


def _groups(root: Path) -> Iterator[tuple[Path, Path]]:
    """(folder of this process's cgroup, where its hierarchy is mounted) of each hierarchy that may limit the CPU."""
    try:
        paths = [line.split(":", 2)[1:] for line in (root / "proc/self/cgroup").read_text().splitlines()]
        mounts = [line.split() for line in (root / "proc/self/mountinfo").read_text().splitlines()]
    except OSError:  # no Linux, or a /proc that is closed
        return
    inside = {controller: path for controllers, path in paths for controller in controllers.split(",")}
    for mount in mounts:
        kind, options = mount[mount.index("-") + 1], mount[-1].split(",")
        controller = {"cgroup2": "", "cgroup": "cpu" if "cpu" in options else None}.get(kind)
        if controller in inside:
            top = root / mount[4].lstrip("/")
            path = Path(inside[controller])
            here = path.relative_to(mount[3]) if path.is_relative_to(mount[3]) else Path()  # a container may show its own group as the top
            yield top / here, top
