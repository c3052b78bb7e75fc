"""Machines and processes, here all on one machine, that meet or say who is missing, and go on after one has died."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from tests.runs.test_resume import SETTINGS, assert_same
from tests.tiny.patience import output, until
from tests.tiny.run import LOST, ff_train, free_port, logged, started, write_run

pytestmark = pytest.mark.slow

COMMAND = [sys.executable, "-m", "flow_factory", "tiny.yaml"]
REWARD = """\
import os
import signal
from pathlib import Path

from flow_factory.rewards.jpeg import JpegCompressibility


class Dies(JpegCompressibility):
    def __call__(self, **asked):
        sign = Path(os.environ.get("DIES_AFTER", "never"))
        first = os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] in os.environ.get("DIES_IN", "0")
        if first and sign.exists() and sign.stat().st_size:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(**asked)
"""


def machine(rank: int, port: int, *flags: str) -> list[str]:
    """The command of one of two machines of one process each."""
    where = ["--main_process_ip", "127.0.0.1", "--main_process_port", str(port), "--rendezvous_timeout", "600"]
    return [*COMMAND, *SETTINGS, "--num_processes", "2", "--num_machines", "2", "--machine_rank", str(rank), *where, *flags]


def task(rank: int, port: int) -> dict[str, str]:
    """The environment of one of two tasks that `srun` starts on one machine."""
    step = {"STEP_ID": "0", "STEP_NUM_TASKS": "2", "STEP_NUM_NODES": "1", "STEP_NODELIST": "localhost", "NODEID": "0", "JOB_ID": "7"}
    own = {"PROCID": str(rank), "LOCALID": str(rank)}
    return {f"SLURM_{k}": v for k, v in (step | own).items()} | {"MASTER_PORT": str(port), "FF_RENDEZVOUS_TIMEOUT": "600"}


def together(folder: Path, *each: tuple[list[str], dict[str, str]]) -> list[subprocess.CompletedProcess[str]]:
    """Commands, each with its environment, that run side by side."""
    with ExitStack() as stack:
        runs = [stack.enter_context(started(command, folder, **environ)) for command, environ in each]
        said = [output(run, folder) for run in runs]
    return [subprocess.CompletedProcess(run.args, run.returncode, *texts) for run, texts in zip(runs, said, strict=True)]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two processes that nothing happened to."""
    folder = tmp_path_factory.mktemp("unbroken")
    write_run(folder)
    done = ff_train("tiny.yaml", *SETTINGS, "--num_processes", "2", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "save" / "run"


# -- meeting ------------------------------------------------------------------------------------------------------------------------


def test_two_machines_train_together(tmp_path: Path, unbroken: Path) -> None:
    write_run(tmp_path)
    port = free_port()
    for done in together(tmp_path, (machine(1, port), {}), (machine(0, port), {})):
        assert done.returncode == 0, done.stderr
    assert_same(tmp_path / "save" / "run", unbroken)


@pytest.mark.exhaustive
def test_two_tasks_of_srun_train_together(tmp_path: Path, unbroken: Path) -> None:
    write_run(tmp_path)
    port, command = free_port(), [*COMMAND, *SETTINGS]
    for done in together(tmp_path, (command, task(1, port)), (command, task(0, port))):
        assert done.returncode == 0, done.stderr
    assert_same(tmp_path / "save" / "run", unbroken)


def alone(rank: int) -> Callable[[int], tuple[list[str], dict[str, str]]]:
    return lambda port: (machine(rank, port, "--rendezvous_timeout", "3"), {})


def srun_alone(rank: int) -> Callable[[int], tuple[list[str], dict[str, str]]]:
    return lambda port: ([*COMMAND, "--rendezvous_timeout", "3"], task(rank, port))


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (alone(1), "machine 1 of 2 at 127.0.0.1:{port}: waited 3 s, and nothing answers (Connection refused); was number 0 started"),
        (alone(0), "machine 0 of 2 at 127.0.0.1:{port}: waited 3 s, but these did not join: 1"),
        (srun_alone(1), "process 1 of 2 at localhost:{port}: waited 3 s, and nothing answers (Connection refused)"),
        (srun_alone(0), "process 0 of 2 at localhost:{port}: waited 3 s, but these did not join: 1"),
    ],
    ids=["machine 1", "machine 0", "task 1", "task 0"],
)  # fmt: skip
def test_who_waits_in_vain_says_so_in_a_line(
    tmp_path: Path, start: Callable[[int], tuple[list[str], dict[str, str]]], message: str
) -> None:
    write_run(tmp_path)
    port = free_port()
    (done,) = together(tmp_path, start(port))
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: {message.format(port=port)}")
    assert "Traceback" not in done.stderr and "frame #" not in done.stderr


@pytest.mark.exhaustive
def test_a_stranger_at_the_port_is_told_from_the_run(tmp_path: Path) -> None:
    """Machine 0 cannot listen there; machine 1 is answered by nobody, and torch alone would wait without end."""
    write_run(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        for rank, message in ((0, "address already in use; set --main_process_port"), (1, "another program listens there")):
            ((command, environ),) = (alone(rank)(port),)
            (done,) = together(tmp_path, (command, environ))
            assert done.returncode == 1
            assert f"error: machine {rank} of 2 at 127.0.0.1:{port}: {message}" in done.stderr
            assert "Traceback" not in done.stderr


@pytest.mark.exhaustive
def test_two_machines_of_one_number_are_told(tmp_path: Path) -> None:
    write_run(tmp_path)
    port = free_port()
    flags = ("--num_machines", "3", "--num_processes", "3", "train.unique_sample_num_per_epoch=3", "--rendezvous_timeout", "15")
    runs = together(tmp_path, *((machine(rank, port, *flags), {}) for rank in (0, 1, 1)))
    assert [done.returncode for done in runs] == [1, 1, 1]
    assert sum("another process has this rank" in done.stderr for done in runs[1:]) == 1


# -- restarts -----------------------------------------------------------------------------------------------------------------------

REWARDED = (*SETTINGS, "rewards.reward_model=mine.Dies")


@pytest.mark.parametrize(
    "after",
    [
        pytest.param("checkpoints/epoch_2/state/progress.json", id="a checkpoint", marks=pytest.mark.exhaustive),  # see all machines below
        pytest.param("metrics.jsonl", id="no checkpoint"),
    ],
)
def test_a_run_whose_process_died_ends_as_if_it_had_not(tmp_path: Path, unbroken: Path, after: str) -> None:
    """Where there is no checkpoint yet, it starts anew."""
    write_run(tmp_path)
    (tmp_path / "mine.py").write_text(REWARD)
    flags = ("--num_processes", "2", "--max_restarts", "1")
    done = ff_train("tiny.yaml", *REWARDED, *flags, cwd=tmp_path, DIES_AFTER=f"save/run/{after}")
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) <= 1 and all(re.fullmatch(LOST, line) for line in said), "or ended before it has noticed"
    assert done.stderr.count("note: a process died; this is restart 1 of 1") == 1
    assert "Traceback" not in done.stderr
    assert done.stdout.count("# run: 4 epochs of grpo") == 1
    assert_same(tmp_path / "save" / "run", unbroken)


def test_all_machines_restart_when_a_process_of_one_died(tmp_path: Path, unbroken: Path) -> None:
    write_run(tmp_path)
    (tmp_path / "mine.py").write_text(REWARD)
    port, dies = free_port(), {"DIES_AFTER": "save/run/checkpoints/epoch_2/state/progress.json"}
    flags = ("rewards.reward_model=mine.Dies", "--max_restarts", "1")
    for done in together(tmp_path, (machine(0, port, *flags), dies), (machine(1, port, *flags), dies)):
        assert done.returncode == 0, done.stderr
    assert_same(tmp_path / "save" / "run", unbroken)


@pytest.mark.exhaustive
@pytest.mark.exhaustive
@pytest.mark.parametrize("dies", [0, 1])
def test_a_launcher_that_died_and_is_started_anew_joins_the_others(tmp_path: Path, unbroken: Path, dies: int) -> None:
    """Its process dies with it. Machine 0's takes the store along, by which the machines had met."""
    write_run(tmp_path)
    waits = REWARD.replace("os.kill(os.getpid(), signal.SIGKILL)", 'Path("waits").touch(), signal.pause()')
    (tmp_path / "mine.py").write_text(waits.replace('== "1"', f'== "{dies}"'))
    sign, port = {"DIES_AFTER": "save/run/checkpoints/epoch_2/state/progress.json"}, free_port()

    def start(rank: int) -> "subprocess.Popen[str]":
        command = machine(rank, port, "rewards.reward_model=mine.Dies", "--max_restarts", "3")
        return stack.enter_context(started(command, tmp_path, **sign))

    with ExitStack() as stack:
        runs = [start(0), start(1)]
        until((tmp_path / "waits").exists, runs[dies], tmp_path)
        runs[dies].kill()
        output(runs[dies], tmp_path)  # which its process would keep open
        runs[dies] = start(dies)
        for run in runs:
            said = output(run, tmp_path)[1]
            assert run.returncode == 0 and "Traceback" not in said, said
    assert_same(tmp_path / "save" / "run", unbroken)


def test_restarts_that_do_not_help_come_to_an_end(tmp_path: Path) -> None:
    write_run(tmp_path)
    (tmp_path / "mine.py").write_text(REWARD)
    (temporary := tmp_path / "temporary").mkdir()
    environment = {"DIES_AFTER": "save/run/metrics.jsonl", "DIES_IN": "0 1", "TMPDIR": str(temporary)}
    flags = ("--num_processes", "2", "--max_restarts", "1")
    done = ff_train("tiny.yaml", *REWARDED, *flags, cwd=tmp_path, **environment)
    assert done.returncode == 128 + signal.SIGKILL
    assert done.stderr.strip().splitlines()[-1] == "error: process 1 of 2 was killed by SIGKILL after 1 restart, at: scoring with 'size'"
    assert list(temporary.iterdir()) == [], "the launcher's folder goes with it"


@pytest.mark.exhaustive
def test_a_process_alone_is_restarted_too(tmp_path: Path) -> None:
    write_run(tmp_path)
    (tmp_path / "mine.py").write_text(REWARD.replace('== "1"', '== "0"'))
    done = ff_train(
        "tiny.yaml", *REWARDED, "--max_restarts", "1", cwd=tmp_path, DIES_AFTER="save/run/checkpoints/epoch_2/state/progress.json"
    )
    assert done.returncode == 0, done.stderr
    assert [line["step"] for line in logged(tmp_path / "save" / "run")] == [0, 1, 2, 2, 3, 4, 4]


def test_sigterm_for_the_launcher_and_all_its_processes_at_once_still_saves(tmp_path: Path) -> None:
    """As Slurm sends it; the launcher passes on its own, so that each process gets two."""
    write_run(tmp_path)
    metrics = tmp_path / "save/run/metrics.jsonl"
    with started([*COMMAND, *SETTINGS, "train.max_epochs=500", "log.save_freq=0", "--num_processes", "2"], tmp_path) as run:
        until(lambda: metrics.exists() and metrics.read_text().count("\n") > 3, run, tmp_path)
        for process in (*psutil.Process(run.pid).children(), psutil.Process(run.pid)):
            os.kill(process.pid, signal.SIGTERM)
        _, said = output(run, tmp_path)
    assert run.returncode == 130, said
    assert len(re.findall("(?:SIGTERM|another process was interrupted): stopped before epoch", said)) == 1, said
    (saved,) = (tmp_path / "save/run/checkpoints").glob("epoch_*")
    assert (saved / "state" / "progress.json").is_file()
