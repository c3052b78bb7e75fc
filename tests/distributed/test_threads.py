"""As many threads as affinity and quotas leave a process, and a short spin; a user's own variables rule, and all of it before torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flow_factory.distributed.threads import SPINS, by_torchrun, set_thread_counts, usable_cores
from tests.tiny.run import ROOT

CORES = len(os.sched_getaffinity(0))
V1 = "33 32 0:30 {root} /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct"
V2 = "31 23 0:28 {root} /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate"


def machine(folder: Path, groups: str, mounts: str, **files: str) -> Path:
    """A root whose process is in these cgroups; `files` are below /sys/fs/cgroup."""
    (folder / "proc/self").mkdir(parents=True)
    (folder / "proc/self/cgroup").write_text(groups)
    (folder / "proc/self/mountinfo").write_text("22 1 0:20 / / rw - ext4 /dev/vda rw\n" + mounts + "\n")
    for name, text in files.items():
        file = folder / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    return folder


def v1(group: str, quota: str, period: str = "100000") -> dict[str, str]:
    return {f"cpu,cpuacct/{group}cpu.cfs_quota_us": quota, f"cpu,cpuacct/{group}cpu.cfs_period_us": period}


@pytest.mark.parametrize(
    ("groups", "mounts", "files", "cores"),
    [
        ("0::/\n", V2.format(root="/"), {}, CORES),  # the root of a machine has no limit and no such file
        ("0::/\n", V2.format(root="/"), {"cpu.max": "50000 100000"}, 0.5),  # of a container that has a cgroup namespace
        ("0::/a/b\n", V2.format(root="/"), {"a/b/cpu.max": "max 100000", "a/cpu.max": "25000 100000"}, 0.25),  # the group above rules
        ("0::/a/b\n", V2.format(root="/"), {"a/b/cpu.max": "20000 100000", "a/cpu.max": "25000 100000"}, 0.2),
        ("4:cpu,cpuacct:/pod/x\n", V1.format(root="/pod/x"), v1("", "30000"), 0.3),  # the mount shows the container's group as its top
        ("4:cpu,cpuacct:/pod/x\n", V1.format(root="/"), {**v1("pod/x/", "-1"), **v1("pod/", "5000", "10000")}, 0.5),
        ("4:cpu,cpuacct:/gone\n0::/\n", V1.format(root="/other") + "\n" + V2.format(root="/"), v1("", "40000"), 0.4),
        ("3:cpuset:/\n", "35 31 0:32 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset", {}, CORES),
    ],
)  # fmt: skip
def test_quotas_of_either_version_and_of_groups_above_count(
    groups: str, mounts: str, files: dict[str, str], cores: float, tmp_path: Path
) -> None:
    assert usable_cores(machine(tmp_path, groups, mounts, **files)) == pytest.approx(cores)


def test_a_machine_without_proc_has_its_affinity(tmp_path: Path) -> None:
    assert usable_cores(tmp_path) == CORES


@pytest.mark.parametrize(
    ("environment", "cores", "threads"),
    [
        ({}, 8, "8"),
        ({}, 0.5, "1"),
        ({}, 1.5, "2"),  # 1.24 s an epoch of the quick start; one thread: 1.41 s
        ({}, 1.25, "1"),
        ({}, 3.75, "4"),
        ({"LOCAL_WORLD_SIZE": "8"}, 96, "12"),
        ({"LOCAL_WORLD_SIZE": "8"}, 2, "1"),
        ({"LOCAL_WORLD_SIZE": "auto"}, 2, "2"),
        ({"LOCAL_WORLD_SIZE": "4", "SLURM_CPUS_PER_TASK": "6"}, 6, "6"),  # the affinity is of one task
        ({"OMP_NUM_THREADS": "3"}, 8, "3"),
        ({"MKL_NUM_THREADS": "3"}, 8, None),
        ({"OMP_NUM_THREADS": "16", "FF_THREADS": "16", "LOCAL_WORLD_SIZE": "4"}, 16, "4"),  # chosen by the program that started this one
    ],
)
def test_processes_share_the_cores_and_the_users_count_rules(environment: dict[str, str], cores: float, threads: str | None) -> None:
    set_thread_counts(environment, cores)
    assert environment.get("OMP_NUM_THREADS") == threads


@pytest.mark.parametrize(
    ("launcher", "extra", "its_own"),
    [
        (b"HOME=/root\0PATH=/bin", {}, True),
        (b"HOME=/root\0OMP_NUM_THREADS=1\0PATH=/bin", {}, False),  # the user's
        (b"", {"OMP_NUM_THREADS": "2"}, False),  # torchrun gives one
        (b"", {"FF_THREADS": "1"}, False),
        (b"", {"TORCHELASTIC_RUN_ID": "flow-factory"}, False),  # this program's launcher
        (None, {}, False),  # no Linux
    ],
)
def test_the_one_thread_that_torchrun_gives_is_nobodys_wish(
    tmp_path: Path, launcher: bytes | None, extra: dict[str, str], its_own: bool
) -> None:
    if launcher is not None:
        (tmp_path / "environ").write_bytes(launcher)
    environment = {"TORCHELASTIC_RUN_ID": "none", "OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "4", **extra}
    assert by_torchrun(environment, tmp_path / "environ") == its_own
    del environment["TORCHELASTIC_RUN_ID"]
    assert not by_torchrun(environment, tmp_path / "environ")


@pytest.mark.parametrize("own", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "GOMP_CPU_AFFINITY", "KMP_BLOCKTIME"])
def test_the_users_way_of_waiting_rules(own: str) -> None:
    environment = {own: "1"}
    set_thread_counts(environment, 2)
    assert environment == {own: "1", "OMP_NUM_THREADS": "2", "FF_THREADS": "2"}


SPY = f"""
import os, sys
import flow_factory.cli as cli
assert "torch" not in sys.modules
cli.main(["--help-config", "log"])
assert "torch" not in sys.modules and os.environ["GOMP_SPINCOUNT"] == "{SPINS}"
import torch
assert torch.get_num_threads() == int(os.environ["OMP_NUM_THREADS"]) == 1
"""


@pytest.mark.slow
def test_the_program_settles_them_before_torch_is_imported() -> None:
    """On one core, whatever the machine has."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "KMP_", "MKL_", "FF_"))} | {"PYTHONPATH": str(ROOT)}
    core = {min(os.sched_getaffinity(0))}
    done = subprocess.run(
        [sys.executable, "-c", SPY], env=clean, capture_output=True, text=True, preexec_fn=lambda: os.sched_setaffinity(0, core)
    )
    assert done.returncode == 0, done.stderr
