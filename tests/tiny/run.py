"""A tiny run of FLUX.1 that a CPU does in a second: checkpoint, data set and YAML; and ways to build, start and kill it."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from flow_factory.checkpoints.state_files import contents, read
from flow_factory.config import load_config
from flow_factory.distributed.topology import ENVIRONMENT, SLURM_STEP
from flow_factory.reporting.metrics import read_metrics
from flow_factory.train import build
from flow_factory.training.run import Run
from flow_factory.utils.tensor_file import DTYPES
from tests.tiny.flux import save_flux
from tests.tiny.patience import output

ROOT = Path(__file__).parents[2]
LOST = r"error: (lost the connection to another process, which has died|process \d+ of \d+ has died, at: .+)"
"""What a process may say of another one's death, if the launcher does not end it before."""
TRAIN = ["a red circle", "a blue square", "a green triangle", "two cat on the hill", "a photo of a dog", "a yellow sunset"]
TEST = ["a red square", "a dog on the hill", "a painting of a horse", "mars"]

YAML = """\
mixed_precision: "no"
data:
  dataset_dir: {data}
  cache_dir: {folder}/cache
model:
  model_name_or_path: {checkpoint}
  model_type: flux1
  finetune_type: lora
  target_modules: default
scheduler:
  num_sde_steps: 1
train:
  resolution: 32
  max_sequence_length: 16
  num_inference_steps: 3
  max_epochs: 2
  group_size: 4
  per_device_batch_size: 2
  unique_sample_num_per_epoch: 2
  gradient_step_per_epoch: 2
  learning_rate: 1.0e-3
  latent_storage_dtype: fp32
  ema_decay: 0.9
  ema_update_interval: 1
eval:
  resolution: 32
  num_inference_steps: 3
  per_device_batch_size: 2
  eval_freq: 1
log:
  run_name: run
  logging_backend: none
  save_dir: {folder}/save
  save_freq: 0
rewards:
  reward_model: jpeg_compressibility
  name: size
"""


@lru_cache
def _checkpoint() -> TemporaryDirectory:
    folder = TemporaryDirectory(prefix="tiny_flux_")
    save_flux(Path(folder.name))
    return folder


def checkpoint() -> Path:
    """The tiny checkpoint on disk, one for all tests; removed when they end."""
    return Path(_checkpoint().name)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_run(folder: Path) -> Path:
    """The YAML of a tiny run whose data set, cache and results are all in `folder`."""
    write_rows(folder / "data" / "train.jsonl", [{"prompt": p} for p in TRAIN])
    write_rows(folder / "data" / "test.jsonl", [{"prompt": p} for p in TEST])
    file = folder / "tiny.yaml"
    file.write_text(YAML.format(folder=folder, data=folder / "data", checkpoint=checkpoint()))
    return file


def tiny(folder: Path, *overrides: str) -> Run:
    """The run, ready to start in this process, which keeps nothing of an earlier run's precision."""
    AcceleratorState._reset_state(reset_partial_state=True)
    file = folder / "tiny.yaml"
    return build(load_config(file if file.exists() else write_run(folder), overrides))


def read_state(checkpoint: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint's training state, whole, however many processes wrote it."""
    index, _ = contents(checkpoint)
    state = {name: torch.zeros(part.shape, dtype=DTYPES[part.dtype]) for name, part in index.tensors.items()}
    read(checkpoint / "state", index, state)
    return state


def trained(run: Run) -> dict[str, Tensor]:
    """A copy of the trained weights."""
    return {k: p.detach().clone() for k, p in run.context.policy.trained().items()}


def logged(folder: Path, clock: bool = False) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; without `clock`, only what does not depend on how fast the machine is."""
    lines = read_metrics(folder / "metrics.jsonl")
    timed = ("time", "perf/")
    return lines if clock else [{k: v for k, v in line.items() if not k.startswith(timed) and "/seconds/" not in k} for line in lines]


@contextmanager
def forwards(cls: type[nn.Module]) -> Iterator[list[nn.Module]]:
    """Gathers every forward of a module of this class, whoever calls it."""
    seen: list[nn.Module] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(module, cls):
            seen.append(module)

    hook = torch.nn.modules.module.register_module_forward_hook(note)
    try:
        yield seen
    finally:
        hook.remove()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(**extra: str) -> dict[str, str]:
    """This process's environment for a child: one thread, no network, and nothing that says it is one of several."""
    several = {"LOCAL_RANK", "RANK", "WORLD_SIZE", *SLURM_STEP, *(name for names in ENVIRONMENT.values() for name in names)}
    clean = {k: v for k, v in os.environ.items() if k not in several}
    return clean | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), **extra}


def ff_train(*arguments: str | Path, cwd: Path, killed: str = "", **extra: str) -> subprocess.CompletedProcess[str]:
    """`python -m flow_factory ARGUMENTS` as a user starts it; `killed` is "FUNCTION CALL SIGNAL" for `tests.tiny.killed`."""
    module = ["tests.tiny.killed", *killed.split()] if killed else ["flow_factory"]
    command = [sys.executable, "-m", *module, *map(str, arguments)]
    with started(command, cwd, **extra) as run:
        out, err = output(run, cwd)
    return subprocess.CompletedProcess(command, run.returncode, out, err)


@contextmanager
def started(command: list[str], cwd: Path, **extra: str) -> Iterator[subprocess.Popen[str]]:
    """The command with its output in pipes; it and all that it started are gone afterwards."""
    run = subprocess.Popen(
        command, cwd=cwd, env=environment(**extra), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield run
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
        run.wait()
