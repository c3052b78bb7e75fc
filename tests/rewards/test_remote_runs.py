"""A run with a remote reward, and the command that serves one."""

import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from flow_factory.utils.errors import RewardError
from tests.rewards.remote import WEB, remote, scored
from tests.tiny.reward_server import numbered, service
from tests.tiny.run import environment, logged, tiny


@pytest.mark.slow
def test_a_run_with_a_remote_reward_is_the_run_with_that_reward(tmp_path: Path, served: str) -> None:
    """And one whose server dies in the middle ends with a line, after the last whole epoch was saved."""
    metrics = {}
    there = ["rewards.reward_model=remote", f"rewards.server_url={served}", "rewards.reward=size"]
    for name, overrides in (("here", []), ("there", there)):
        run = tiny(tmp_path, f"run_name={name}", *overrides)
        run()
        lines = logged(tmp_path / "save" / name)
        metrics[name] = [{k: v for k, v in line.items() if "time" not in k and "seconds" not in k and "/s" not in k} for line in lines]
    assert metrics["here"] == metrics["there"]

    with service() as (address, _):
        key = [f"rewards.server_url={address}", "rewards.reward_model=remote", "rewards.name=reads", "rewards.retry_attempts=2"]
        run = tiny(tmp_path, "run_name=dies", "eval.eval_freq=0", "log.save_freq=1", "log.save_model_only=false", *key)
        link = run.context.rewards.rewards[0].model.link
        well = link.request

        def ask(path: str, questions: Any) -> Any:
            if (tmp_path / "save" / "dies" / "checkpoints" / "epoch_1").is_dir():
                link.url = "http://127.0.0.1:9"
            return well(path, questions)

        link.request = ask
        with pytest.raises(RewardError, match="reward 'reads' gave no score for .* its last error: http://127.0.0.1:9"):
            run()
    assert (tmp_path / "save" / "dies" / "checkpoints" / "epoch_1" / "state").is_dir()


@pytest.mark.slow
@pytest.mark.exhaustive
def test_the_command_serves_by_several_processes_outlives_one_and_ends_gracefully(tmp_path: Path) -> None:
    (tmp_path / "rewards.yaml").write_text("rewards:\n  reward_model: tests.tiny.reward_server:Reads\n  name: reads\n")
    command = [sys.executable, "-m", "flow_factory.commands.reward", "serve", "rewards.yaml", "--port", "0", "--workers", "2"]
    process = subprocess.Popen([*command, "--devices", "cpu"], cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        address = re.search(r"http://127.0.0.1:\d+", line)[0]  # type: ignore[index]
        assert line.startswith("serving reads at ") and WEB.get(f"{address}/ready").status_code in (200, 503)
        reward = remote(address, max_concurrent=4)
        numbers = [numbered(k) for k in range(1, 41)]
        assert scored(reward, numbers).tolist() == list(range(1, 41))
        workers = psutil.Process(process.pid).children(recursive=True)
        scoring = [one for one in workers if "spawn_main" in " ".join(one.cmdline())]
        assert len(scoring) == 2
        for one in scoring:
            one.kill()
        reward.rewards[0].model.link.tries = 1000
        assert scored(reward, numbers).tolist() == list(range(1, 41)), "they are started again"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
    done = subprocess.run([*command, "--host", "256.0.0.1"], cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 2 and re.fullmatch(r"error: server.host, server.port: cannot listen on 256.0.0.1:0: .*\n", done.stderr)
    if not torch.cuda.is_available():
        done = subprocess.run([*command, "--devices", "cuda:7"], cwd=tmp_path, env=environment(), capture_output=True, text=True)
        assert done.returncode == 2 and "error: server.devices: cuda:7: this machine has no cuda device; write auto" in done.stderr
    (tmp_path / "rewards.yaml").write_text("rewards:\n  reward_model: CLIP\n  model_name_or_path: ./none\n")
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 2 and "error: reward 'clip': model_name_or_path: './none' is neither a folder" in done.stderr, done.stderr
