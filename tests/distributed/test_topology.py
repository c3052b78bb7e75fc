"""Where the processes are: the command line over the environment over the YAML, by the names of torch, Kubeflow, Slurm and others."""

from pathlib import Path
from typing import Any

import pytest

from flow_factory.config import ConfigError, RunConfig, load_config
from flow_factory.distributed.launch import restart_overrides
from flow_factory.distributed.topology import Topology, first_host, overrides_of, requested_processes, resolve_topology, srun_task
from tests.tiny.run import write_run

WORKER = {"LOCAL_RANK": "1", "RANK": "1", "WORLD_SIZE": "4"}
STEP = {
    "SLURM_JOB_ID": "4031234", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NODEID": "1",
    "SLURM_STEP_NODELIST": "gpu[003-010]", "SLURM_PROCID": "1", "SLURM_LOCALID": "0", "SLURM_GPUS_ON_NODE": "8",
}  # fmt: skip
TASKS = STEP | {"SLURM_STEP_NUM_TASKS": "16", "SLURM_PROCID": "11", "SLURM_LOCALID": "3"}
SHELL = {k: v for k, v in STEP.items() if "STEP" not in k} | {
    "SLURM_NTASKS": "16",
    "SLURM_NNODES": "2",
    "SLURM_JOB_NODELIST": "gpu[003-010]",
}
"""Of a script of sbatch, outside srun."""
KUBEFLOW = {
    "PET_NNODES": "2", "PET_NODE_RANK": "1", "PET_MASTER_ADDR": "job-master-0", "PET_MASTER_PORT": "23456", "PET_NPROC_PER_NODE": "8",
    "RANK": "1", "WORLD_SIZE": "2",
}  # fmt: skip


def configured(folder: Path, *overrides: str) -> RunConfig:
    return load_config(
        write_run(folder), ["num_processes=4", "main_process_port=29777", "train.unique_sample_num_per_epoch=48", *overrides]
    )


@pytest.mark.parametrize(
    ("flags", "environ", "processes"),
    [
        ({}, {}, None),
        ({"num_processes": 3}, {}, 3),
        ({"num_processes": 3}, {"GPUS_PER_NODE": "8"}, 3),
        ({}, {"GPUS_PER_NODE": "8"}, 8),
        ({}, {"HOST_GPU_NUM": "4", "NUM_NODES": "2"}, 8),
        ({"num_machines": 3}, {"HOST_GPU_NUM": "4", "NUM_NODES": "2"}, 12),
        ({}, {"NUM_MACHINES": "2"}, None),
        ({"num_processes": 4}, WORKER, 4),
        ({}, {"GPUS_PER_NODE": "8"} | WORKER, 4),
        ({}, KUBEFLOW, 16),
        ({}, KUBEFLOW | {"PET_NPROC_PER_NODE": "auto"}, None),
        ({}, STEP, 16),
        ({}, STEP | {"GPUS_PER_NODE": "4"}, 8),
        ({}, {k: v for k, v in STEP.items() if k != "SLURM_GPUS_ON_NODE"} | {"SLURM_GPUS_PER_NODE": "h100:4"}, 8),
        ({}, STEP | {"SLURM_GPUS_ON_NODE": "h100:4,a100:2"}, 12),
        ({}, SHELL, None),
    ],
)
def test_how_many_processes(flags: dict[str, int], environ: dict[str, str], processes: int | None) -> None:
    assert requested_processes(flags, environ) == processes


@pytest.mark.parametrize(
    ("flags", "environ", "processes"),
    [({}, {}, 2), ({}, {"GPUS_PER_NODE": "8"}, 2), ({"num_processes": 3}, {"GPUS_PER_NODE": "8"}, 3), ({}, WORKER, 4)],
)
def test_an_override_is_of_the_command_line_too(tmp_path: Path, flags: dict[str, int], environ: dict[str, str], processes: int) -> None:
    assert configured(tmp_path, *overrides_of(flags, environ, ["num_processes=2"])).num_processes == processes


@pytest.mark.parametrize(
    ("flags", "environ", "want"),
    [
        ({}, {}, Topology(4, 1, 0, "127.0.0.1", 29777, False)),
        ({}, {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1234", "NODE_RANK": "1", "NUM_NODES": "2"},
         Topology(4, 2, 1, "10.0.0.1", 1234, False)),
        ({}, {"CHIEF_IP": "c", "MASTER_ADDR": "a", "MASTER_IP": "m", "INDEX": "3", "HOST_NUM": "4"}, Topology(4, 4, 3, "m", 29777, False)),
        ({"machine_rank": 0, "num_machines": 1, "main_process_port": 5, "main_process_ip": "b"},
         {"MASTER_ADDR": "a", "MASTER_PORT": "1234", "NODE_RANK": "1", "NUM_NODES": "2"}, Topology(4, 1, 0, "b", 5, False)),
        ({}, KUBEFLOW, Topology(4, 2, 1, "job-master-0", 23456, False)),
        ({}, STEP, Topology(4, 2, 1, "gpu003", 21234, False)),
        ({"main_process_port": 7}, STEP | {"MASTER_ADDR": "ib0-gpu003"}, Topology(4, 2, 1, "ib0-gpu003", 7, False)),
        ({}, SHELL, Topology(4, 1, 0, "127.0.0.1", 29777, False)),
        ({"rendezvous_timeout": 5, "max_restarts": 3}, {"FF_RENDEZVOUS_TIMEOUT": "9"},
         Topology(4, 1, 0, "127.0.0.1", 29777, False, 5, 3)),
        ({}, {"FF_RENDEZVOUS_TIMEOUT": "9", "PET_MAX_RESTARTS": "2"}, Topology(4, 1, 0, "127.0.0.1", 29777, False, 9, 2)),
        ({}, WORKER, Topology(4, 1, 0, "127.0.0.1", 29777, True)),
        ({}, WORKER | {"GROUP_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, Topology(4, 1, 0, "a", 1, True)),
    ],
)  # fmt: skip
def test_the_command_line_overrides_the_environment_overrides_the_yaml(
    tmp_path: Path, flags: dict[str, Any], environ: dict[str, str], want: Topology
) -> None:
    assert resolve_topology(configured(tmp_path), {"num_processes": None, **flags}, environ) == want


def test_machines_of_the_yaml_need_an_address_to_start_and_none_for_a_plan(tmp_path: Path) -> None:
    config = configured(tmp_path, "num_machines=2")
    with pytest.raises(ConfigError, match=r"2 machines \(num_machines in the YAML\), and nothing says where machine 0 is; set --main_"):
        resolve_topology(config, {}, {})
    assert resolve_topology(config, {}, {}, starts=False) == Topology(4, 2, 0, "127.0.0.1", 29777, False)


MEET = {"main_process_ip": "a", "machine_rank": 0}


@pytest.mark.parametrize(
    ("flags", "environ", "message"),
    [
        ({"num_machines": 3, **MEET}, {}, "4 processes cannot be divided evenly over 3 machines; use 3"),
        ({"num_machines": 0}, {}, "--num_machines is '0'; it must be a whole number from 1"),
        ({"num_machines": 2, "machine_rank": 0}, {}, r"2 machines \(--num_machines\), and nothing says where machine 0 is; set --main_"),
        ({"main_process_ip": "a"}, {"NUM_NODES": "2"}, r"2 machines \(NUM_NODES\), .* which one this is; set --machine_rank, or NODE_RANK"),
        ({"num_machines": 2, **MEET, "machine_rank": 2}, {}, "--machine_rank is 2, and 2 machines count from 0; set --machine_rank, or"),
        ({}, {"NODE_RANK": "1"}, "NODE_RANK is 1, and 1 machine is 0; set --machine_rank, or --num_machines"),
        ({"num_machines": 2, **MEET, "main_process_port": 0}, {}, "need a port that all of them know; set --main_process_port"),
        ({"main_process_port": 70000}, {}, "--main_process_port is '70000'; it must be a whole number from 0 to 65535"),
        ({"rendezvous_timeout": 0}, {}, "--rendezvous_timeout is '0'; it must be a whole number from 1"),
        ({}, {"MASTER_PORT": "http"}, "MASTER_PORT is 'http'; it must be a whole number"),
        ({}, {"PET_NNODES": "1:4"}, "PET_NNODES is '1:4'; it must be a whole number"),
        ({"max_restarts": 1}, WORKER, "started by another launcher, and only that one can restart it"),
    ],
)
def test_places_that_cannot_be(tmp_path: Path, flags: dict[str, Any], environ: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve_topology(configured(tmp_path), flags, environ)


@pytest.mark.parametrize(
    ("flags", "environ", "message"),
    [
        ({}, {"GPUS_PER_NODE": "all"}, "GPUS_PER_NODE is 'all'"),
        ({}, STEP | {"SLURM_GPUS_ON_NODE": "h100"}, "SLURM_GPUS_ON_NODE is 'h100'"),
        ({"num_processes": 3}, WORKER, "--num_processes is 3, and this is one of 4 that run already; leave it out"),
    ],
)
def test_numbers_of_processes_that_cannot_be(flags: dict[str, int], environ: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        requested_processes(flags, environ)


def test_a_task_of_srun_is_told_what_torch_wants_to_know() -> None:
    """Where there are several on a machine; in a script's shell, in a step of one task a machine, and in a worker, nothing."""
    want = {
        "RANK": "11", "LOCAL_RANK": "3", "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8", "MASTER_ADDR": "gpu003", "MASTER_PORT": "21234",
    }  # fmt: skip
    assert srun_task({}, TASKS) == want
    assert srun_task({"main_process_port": 7}, TASKS | {"MASTER_ADDR": "a"}) == want | {"MASTER_ADDR": "a", "MASTER_PORT": "7"}
    assert [srun_task({}, environ) for environ in ({}, SHELL, STEP, TASKS | WORKER)] == [{}, {}, {}, {}]
    assert requested_processes({}, TASKS | want) == 16
    with pytest.raises(ConfigError, match="srun started 15 tasks on 2 machines; give each the same number by --ntasks-per-node"):
        srun_task({}, TASKS | {"SLURM_STEP_NUM_TASKS": "15"})


@pytest.mark.parametrize(
    ("nodelist", "host"),
    [
        ("gpu[003-010,12],login1", "gpu003"), ("login1,gpu[003-010]", "login1"), ("gpu7", "gpu7"), ("a,b", "a"),
        ("rack[2-3]node[08,10]", "rack2node08"), ("n[1]-ib.cluster", "n1-ib.cluster"), ("gpu-a[5,7]", "gpu-a5"),
    ],
)  # fmt: skip
def test_the_first_host_of_a_list(nodelist: str, host: str) -> None:
    assert first_host(nodelist) == host


# -- restarts -----------------------------------------------------------------------------------------------------------------------


def test_a_restart_goes_on_by_itself(tmp_path: Path) -> None:
    state = "log.save_model_only=false"
    assert restart_overrides(configured(tmp_path), 0) == []
    assert restart_overrides(configured(tmp_path, state), 1) == ["model.resume_path=auto"]
    assert restart_overrides(configured(tmp_path, state, "model.resume_path=auto"), 1) == []
    assert restart_overrides(configured(tmp_path, state, f"model.resume_path={tmp_path}/save/run"), 1) == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((), "--max_restarts: a restart needs model.resume_path: auto, and auto .* set log.save_model_only: false"),
        (("log.save_model_only=false", "run_name=null"), "--max_restarts: .* set log.run_name"),
        (("log.save_model_only=false", "model.resume_path=save/other"), "own folder, and model.resume_path is save/other"),
    ],
)
def test_restarts_that_could_not_go_on(tmp_path: Path, overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        restart_overrides(configured(tmp_path, *overrides), 1)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("log.save_model_only=false", "run_name=null"), "model.resume_path: auto finds this run's folder by its name; set log.run_name"),
        ((), "model.resume_path: auto goes on from a training state; set log.save_model_only: false"),
        (("log.save_model_only=false", "model.resume_type=lora"), "model.resume_type: resume_path: auto goes on from a training state"),
    ],
)
def test_auto_needs_a_name_and_a_state(tmp_path: Path, overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        configured(tmp_path, "model.resume_path=auto", *overrides)


def test_a_number_of_processes_that_is_none_is_named() -> None:
    with pytest.raises(ConfigError, match="WORLD_SIZE is 'abc'; it must be a whole number from 1"):
        requested_processes({}, {"LOCAL_RANK": "0", "WORLD_SIZE": "abc"})
