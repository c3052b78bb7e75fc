"""The processes of this machine under torch's elastic agent, with restarts that all machines count together."""

import os
import sys
from collections.abc import Sequence
from tempfile import TemporaryDirectory

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, LogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig

from flow_factory.distributed.machines import Machines

FINAL = (2, 130)
"""Exit codes after which a restart is useless: a wrong config or data, and a run that was asked to stop."""


class Agent(LocalElasticAgent):
    """Torch's agent, but the restarts of all machines are counted together."""

    def __init__(self, spec: WorkerSpec, machines: Machines, logs: LogsSpecs, shutdown_timeout: int):
        super().__init__(spec, logs, shutdown_timeout=shutdown_timeout)
        self.machines = machines

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        super()._rendezvous(worker_group)
        self._remaining_restarts = self.machines.left

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result: RunResult = super()._monitor_workers(worker_group)
        if result.state == WorkerState.FAILED and ChildFailedError("", result.failures).get_first_failure()[1].exitcode in FINAL:
            self._remaining_restarts = 0
        if result.state == WorkerState.SUCCEEDED and not self.machines.all_done():
            return RunResult(WorkerState.HEALTHY)  # others may still need a restart, and this machine with them
        return result

    def _exit_barrier(self) -> None:
        self.machines.leave()


def run_processes(machines: Machines, here: int, arguments: Sequence[str]) -> None:
    """Starts `python ARGUMENTS` in `here` processes of this machine, and restarts them after a death, until all have succeeded.

    Raises:
        ChildFailedError: a process failed, and no restart is left, or a restart is useless.
        SignalException: SIGTERM or Ctrl-C. It was forwarded to the processes, and they have ended.
        RendezvousError: see `Machines.meet`.
    """
    os.environ.setdefault("TORCH_ELASTIC_WORKER_IDENTICAL", "1")  # else torch counts them over the store, and waits for the dead
    count = machines.place.count
    with TemporaryDirectory(prefix="ff_launcher_", ignore_cleanup_errors=True) as folder:  # torch would not remove its own folder
        logs = DefaultLogsSpecs(folder)
        config = LaunchConfig(count, count, here, max_restarts=machines.max_restarts, logs_specs=logs)
        spec = WorkerSpec(
            config.role, here, machines, args=tuple(arguments), entrypoint=sys.executable, max_restarts=config.max_restarts,
            monitor_interval=config.monitor_interval, numa_options=config.numa_options,
        )  # fmt: skip
        result = Agent(spec, machines, logs, config.shutdown_timeout or 0).run()
    if result is not None and result.is_failed():
        raise ChildFailedError(sys.executable, result.failures)
