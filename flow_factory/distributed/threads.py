"""The number of OpenMP threads of a process and their waiting policy, set before torch is imported. Standard library only."""

import math
import os
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path

COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
WAITING = ("OMP_WAIT_POLICY", "GOMP_", "KMP_")
"""Prefixes of variables with which a user sets the waiting policy."""
SPINS = "1000"
"""Iterations of the spin loop of a waiting thread before it sleeps: some tens of microseconds. The default of GNU's OpenMP, which is in
torch's wheels, is 300000. That is harmless on an idle machine, but on a busy one it takes most of the time that the awaited thread needs
(benchmarks/README.md)."""
OWN_LAUNCHER = "flow-factory"
"""TORCHELASTIC_RUN_ID of this program's launcher, which sets threads only by `set_thread_counts`."""
OURS = "FF_THREADS"
"""The variable with the number of threads that this program chose, so that processes it starts choose their own."""


def set_thread_counts(environment: MutableMapping[str, str], cores: float | None = None) -> None:
    """Sets OpenMP's number of threads and spin count, unless the user has set them. To be called before torch is imported.

    Args:
        cores: the number of cores for all processes of this machine; `usable_cores()` by default.
    """
    if by_torchrun(environment):
        del environment["OMP_NUM_THREADS"]
    if all(environment.get(name) in (None, environment.get(OURS)) for name in COUNTS):
        own = "SLURM_CPUS_PER_TASK" in environment  # such a task has cores of its own
        share = (usable_cores() if cores is None else cores) / (1 if own else processes_here(environment))
        environment["OMP_NUM_THREADS"] = environment[OURS] = str(max(1, math.floor(share + 0.5)))
    if not any(name.startswith(WAITING) for name in environment):
        environment["GOMP_SPINCOUNT"] = SPINS


def usable_cores(root: Path = Path("/")) -> float:
    """The number of cores by affinity and cgroup quotas. In a container it is often smaller than the machine's, and not an integer."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([float(allowed), *_quotas(root)])


def processes_here(environment: Mapping[str, str]) -> int:
    """The number of the run's processes on this machine."""
    count = environment.get("LOCAL_WORLD_SIZE", "")
    return max(1, int(count)) if count.isdecimal() else 1


def by_torchrun(environment: Mapping[str, str], parent: Path | None = None) -> bool:
    """Whether OMP_NUM_THREADS=1 was set by torchrun (or by accelerate, which uses it), and not by the user.

    Args:
        parent: the file in which Linux shows the environment of the launcher.
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
    """The quotas of this process's cgroups and their parents, of both versions, as far as they are visible."""
    for folder, top in _groups(root):
        for group in (folder, *folder.parents):
            if (quota := _quota(group)) is not None:
                yield quota
            if group == top:
                break


def _quota(group: Path) -> float | None:
    """The number of cores of one cgroup; None without a limit."""
    if (file := group / "cpu.max").is_file():
        most, period = file.read_text().split()
    elif (file := group / "cpu.cfs_quota_us").is_file():
        most, period = file.read_text().strip(), (group / "cpu.cfs_period_us").read_text().strip()
    else:
        return None
    return None if most in ("max", "-1") else int(most) / int(period)


def _groups(root: Path) -> Iterator[tuple[Path, Path]]:
    """(folder of this process's cgroup, mount point of the hierarchy) for each hierarchy that may limit the CPU."""
    try:
        paths = [line.split(":", 2)[1:] for line in (root / "proc/self/cgroup").read_text().splitlines()]
        mounts = [line.split() for line in (root / "proc/self/mountinfo").read_text().splitlines()]
    except OSError:  # not Linux, or /proc is not readable
        return
    inside = {controller: path for controllers, path in paths for controller in controllers.split(",")}
    for mount in mounts:
        kind, options = mount[mount.index("-") + 1], mount[-1].split(",")
        controller = {"cgroup2": "", "cgroup": "cpu" if "cpu" in options else None}.get(kind)
        if controller in inside:
            top = root / mount[4].lstrip("/")
            path = Path(inside[controller])
            here = path.relative_to(mount[3]) if path.is_relative_to(mount[3]) else Path()  # in a container its own cgroup may be the root
            yield top / here, top
