"""What more processes bring: seconds by phase for 1 and 2 of them, and the bytes that each sends in an epoch, by phase and kind.

    python benchmarks/scaling.py quickstart --engines multi_gpu fsdp2          the quick start's epoch
    python benchmarks/scaling.py middle --engines multi_gpu fsdp2 deepspeed_zero2 deepspeed_zero3
    python benchmarks/scaling.py middle --threads 1 --processes 1 2

Prints one JSON object: the same global batch in each line, medians of the epochs after the first. On a CPU with two cores, `--threads 1`
gives every process one core, so that two processes have twice the machine of one, as two GPUs have.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.epoch import ROOT, middle_config
from flow_factory.config import load_config
from flow_factory.train import build
from flow_factory.training.trainer import Trainer

KINDS = {
    "allreduce": "all-reduce", "allgather": "all-gather", "_allgather_base": "all-gather", "allgather_into_tensor_coalesced": "all-gather",
    "_reduce_scatter_base": "reduce-scatter", "reduce_scatter": "reduce-scatter", "reduce_scatter_tensor_coalesced": "reduce-scatter",
    "broadcast": "broadcast", "gather": "gather", "scatter": "scatter", "alltoall_base": "all-to-all", "alltoall": "all-to-all",
}  # fmt: skip


class Traffic(TorchDispatchMode):
    """Bytes of the tensors that collectives of this thread are given or fill, by (phase of the epoch, kind)."""

    def __init__(self, trainer: Trainer):
        super().__init__()
        self.bytes: Counter[tuple[str, str]] = Counter()
        self.phase, meter, enter = "between", trainer.context.meter, trainer.context.meter.phase

        def phase(name: str) -> Any:
            self.phase = name
            return enter(name)

        meter.phase = phase  # type: ignore[method-assign]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if name.startswith("c10d::"):
            kind = KINDS.get(name.removeprefix("c10d::").rstrip("_"))
            if kind is not None:
                sizes = [x.numel() * x.element_size() for x in tree_leaves(args) if isinstance(x, Tensor)]
                # what is gathered and its parts are both arguments: the larger side is what goes round
                self.bytes[self.phase, kind] += max(sum(sizes) - min(sizes), max(sizes)) if len(sizes) > 1 else sum(sizes)
        return func(*args, **(kwargs or {}))


def work(config: Path, overrides: list[str], epochs: int) -> dict[str, Any] | None:
    """In each process: medians over epochs, and the traffic of the last one, on the first."""
    run = build(load_config(config, overrides))
    trainer = run.trainer
    trainer.epoch()
    rows = [trainer.epoch() for _ in range(epochs)]
    traffic = Traffic(trainer)
    with traffic:
        trainer.epoch()
    if not trainer.context.accelerator.is_main_process:
        return None
    seconds = {k: statistics.median(r[k] for r in rows) for k in rows[0] if k.startswith("time/")}
    return {
        "engine": trainer.context.engine.describe(),
        "seconds": {k.removeprefix("time/").removesuffix("_s"): round(v, 3) for k, v in seconds.items()},
        "samples_per_second": round(statistics.median(r["perf/samples_per_s"] for r in rows), 3),
        "peak_memory_gb": round(rows[-1]["perf/peak_memory_gb"], 2),
        "bytes_an_epoch": {f"{phase}: {kind}": n for (phase, kind), n in sorted(traffic.bytes.items())},
    }


def started(config: Path, folder: Path, engine: str | None, processes: int, args: argparse.Namespace) -> dict[str, Any]:
    """One line of the table, in processes of its own."""
    overrides = [f"log.save_dir={folder}/save", "log.logging_backend=none", f"num_processes={processes}", "train.max_epochs=99"]
    overrides += [f"run_name={engine}-{processes}", *args.set]
    overrides += [f"config_file={ROOT}/examples/launch/{engine}.yaml"] if engine else []
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"] if processes > 1 else []
    command = [sys.executable, "-m", *launcher, "benchmarks.scaling", args.what, "--worker", str(config), "--epochs", str(args.epochs)]
    env = os.environ | {"OMP_NUM_THREADS": str(args.threads), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, "--set", *overrides], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"engine"')))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("quickstart", "middle"))
    parser.add_argument("--engines", nargs="+", default=["multi_gpu", "fsdp2"], help="files of examples/launch")
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--epochs", type=int, default=3, help="timed ones")
    parser.add_argument("--threads", type=int, default=1, help="of each process, on a CPU")
    parser.add_argument("--set", nargs="*", default=[], metavar="section.key=value", help="for the config")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        torch.set_num_threads(args.threads)
        if (said := work(args.worker, args.set, args.epochs)) is not None:
            print(json.dumps(said), flush=True)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = ROOT / "examples" / "quickstart" / "grpo.yaml" if args.what == "quickstart" else middle_config(folder)
        lines = [(None, n) for n in args.processes if n == 1] + [(e, n) for e in args.engines for n in args.processes if n > 1]
        out = {f"{engine or 'one process'} x {n}": started(config, folder, engine, n, args) for engine, n in lines}
        print(json.dumps({"what": args.what, "threads": args.threads, "torch": torch.__version__} | out, indent=1))


if __name__ == "__main__":
    main()
