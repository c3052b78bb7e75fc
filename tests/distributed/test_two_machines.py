"""The files of examples/cluster say what `ff-train` understands."""

import re
import shlex
import subprocess

import pytest
import torch
import yaml

from flow_factory.cli import parser
from flow_factory.config import ConfigError, RunConfig, load_config
from flow_factory.distributed.agent import FINAL
from flow_factory.distributed.launch import launch, restart_overrides
from flow_factory.distributed.topology import ENVIRONMENT, Topology, overrides_of, resolve_topology
from tests.tiny.run import ROOT

CLUSTER = ROOT / "examples" / "cluster"


def asked(command: str, environment: dict[str, str]) -> tuple[RunConfig, Topology]:
    """What `ff-train ARGUMENTS` would do there."""
    args = parser().parse_intermixed_args(shlex.split(command)[1:])
    config = load_config(ROOT / args.config, overrides_of(vars(args), environment, args.overrides))
    return config, resolve_topology(config, vars(args), environment)


def test_the_script_for_slurm_starts_sixteen_processes_that_go_on() -> None:
    script = CLUSTER / "slurm.sh"
    assert "#SBATCH --requeue\n" in script.read_text() and re.search(r"-eq 130 \]; then\n    scontrol requeue", script.read_text())
    subprocess.run(["bash", "-n", script], check=True)
    (command,) = re.findall(r"ff-train examples.*?(?= \|\|)", script.read_text())
    step = {
        "JOB_ID": "7", "STEP_ID": "0", "STEP_NUM_NODES": "2", "STEP_NUM_TASKS": "2", "STEP_NODELIST": "a[1-2]", "NODEID": "1",
        "GPUS_ON_NODE": "8",
    }  # fmt: skip
    config, there = asked(command, {f"SLURM_{k}": v for k, v in step.items()})
    assert there == Topology(16, 2, 1, "a1", 20007, False, max_restarts=20)
    assert restart_overrides(config, there.max_restarts) == [] and config.model.resume_path == "auto"


def test_the_job_for_kubernetes_starts_sixteen_processes_that_go_on() -> None:
    service, job = yaml.safe_load_all((CLUSTER / "kubernetes.yaml").read_text())
    name, pod = job["metadata"]["name"], job["spec"]["template"]["spec"]
    assert service["spec"]["clusterIP"] == "None" and service["spec"]["selector"] == {"job-name": name}
    assert job["spec"]["completionMode"] == "Indexed"
    rules = [rule for rule in job["spec"]["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
    assert {tuple(rule["onExitCodes"]["values"]): rule["action"] for rule in rules} == {(2,): "FailJob", (130,): "Ignore"}
    assert FINAL == (2, 130), "after which a launcher does not restart either"
    (container,) = pod["containers"]
    environment = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert set(environment) <= {known for names in ENVIRONMENT.values() for known in names}
    assert environment.pop("NODE_RANK") is None  # the pod's index
    assert environment["MASTER_ADDR"] == f"{name}-0.{service['metadata']['name']}" and pod["subdomain"] == service["metadata"]["name"]
    assert int(environment["NUM_NODES"]) == job["spec"]["completions"] == job["spec"]["parallelism"]
    assert int(environment["GPUS_PER_NODE"]) == container["resources"]["limits"]["nvidia.com/gpu"]
    config, there = asked(shlex.join(container["command"] + container["args"]), environment | {"NODE_RANK": "1"})
    assert there == Topology(16, 2, 1, "flow-factory-0.flow-factory", 29500, False, max_restarts=20)
    assert config.model.resume_path == "auto" and config.log.save_dir in [mount["mountPath"] for mount in container["volumeMounts"]]


def test_more_processes_than_gpus_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a job of two machines was started without srun."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    with pytest.raises(ConfigError, match="16 processes on this machine, which has 8 GPUs; set --num_processes 8, or name more machines"):
        launch(Topology(16, 1, 0, "127.0.0.1", 29500, False), [], 600)
