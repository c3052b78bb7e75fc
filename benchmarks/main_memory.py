"""What each process of a machine takes of its main memory while a run is built, beside what it shares with the others.

    python benchmarks/main_memory.py --gb 1.3 --processes 4

Makes a random FLUX.1 of that size in bf16 and one in float32, builds runs on them in so many processes (gloo, no GPU), and prints a line
for each: memory of its own, in which no file is, more than before the run, at the peak and at the end. On a CPU what would be on the GPU is
there, too: the weights as the engine holds them. Linux only.
"""

import argparse
import ctypes
import importlib.util
import json
import re
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from flow_factory.models.loading import DTYPES
from flow_factory.training.run import Run
from tests.tiny.flux import flux_pipeline
from tests.tiny.several import several
from tests.tiny.weighed import size_of

ROOT = Path(__file__).parent.parent
FSDP2, ZERO3 = (f"config_file={ROOT}/examples/launch/{name}.yaml" for name in ("fsdp2", "deepspeed_zero3"))
COMMON = (
    "mixed_precision=bf16", "train.unique_sample_num_per_epoch=4", "train.gradient_step_per_epoch=1", "train.ema_decay=0",
    "eval.eval_freq=0", "model.master_weight_dtype=fp32", "model.reshard_after_forward=true",
)  # fmt: skip
CASES = {
    "lora": ("bf16", ("model.finetune_type=lora",)),
    "lora_of_float32": ("fp32", ("model.finetune_type=lora",)),
    "full_by_fsdp2": ("bf16", ("model.finetune_type=full", "model.target_modules=all", FSDP2)),
    "full_by_zero3": ("bf16", ("model.finetune_type=full", "model.target_modules=all", ZERO3)),
}
"""Run -> the dtype of the checkpoint's files, and its keys; the weights that are trained are float32, all compute in bf16."""
OFTEN = 0.02
"""Seconds between two looks."""
M_MMAP_THRESHOLD = -3
"""glibc's name of the size from which each piece of memory is a mapping of its own, and given back when it is let go of."""


def make(folder: Path, parameters: float, dtype: torch.dtype) -> Path:
    """A checkpoint whose transformer has about so many random weights."""
    heads = 16 if parameters > 3e8 else 4
    many = max(1, round(parameters / (15 * (128 * heads) ** 2)) - 3)
    shape = {"num_layers": 1, "num_single_layers": many, "attention_head_dim": 128, "num_attention_heads": heads}
    pipe = flux_pipeline(transformer={**shape, "axes_dims_rope": (16, 56, 56)})
    pipe.transformer.to(dtype)
    pipe.save_pretrained(folder)
    return folder


class Watch:
    """How much memory of its own this process has, and had at most since it had least."""

    def __init__(self) -> None:
        self.low = self.high = anonymous()
        self.settled: int | None = None
        """The most until DeepSpeed began."""
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while True:
            now = anonymous()
            if now < self.low:
                self.low = self.high = now
            self.high = max(self.high, now)
            time.sleep(OFTEN)


watch: Watch


def begin(rank: int) -> None:
    """In each process, before its first run."""
    global watch
    ctypes.CDLL("libc.so.6").mallopt(M_MMAP_THRESHOLD, 2**20)  # what the allocator keeps for later is nobody's
    watch = Watch()
    if importlib.util.find_spec("deepspeed"):
        deepspeed = importlib.import_module("deepspeed")
        deepspeed.initialize = marked(deepspeed.initialize)


def marked(initialize: Callable[..., Any]) -> Callable[..., Any]:
    """`deepspeed.initialize`: what it makes of the weights would be on the GPU, and is to be told from what their casts took."""

    def marking(*args: Any, **kwargs: Any) -> Any:
        watch.settled = watch.high
        return initialize(*args, **kwargs)

    return marking


def held(run: Run) -> dict[str, float]:
    """What this process took more than before the run, and what it has of it, in MB."""
    now = anonymous()
    dist.barrier()  # files are mapped by all
    part, params = run.context.engine.part, list(run.context.policy.parameters())
    own, frozen = ([part(p) for p in params if p.requires_grad == trained] for trained in (True, False))
    copies = [t for kept in run.context.store.copies.values() for t in kept]
    found = {"peak": watch.high - watch.low, "end": now - watch.low, "trained": size_of(own), "copies": size_of(copies)}
    found["settled"] = (watch.settled or watch.high) - watch.low
    found |= {"frozen": size_of(frozen), "mapped": mapped()}
    dist.barrier()
    watch.low, watch.settled = 2**62, None  # the next run's is looked for anew
    return {name: round(size / 1e6, 1) for name, size in found.items()}


def anonymous() -> int:
    """Bytes of this process's own memory, in which no file is."""
    return int(re.findall(r"^Anonymous:\s+(\d+) kB", Path("/proc/self/smaps_rollup").read_text(), re.M)[0]) * 1024


def mapped() -> int:
    """Bytes of safetensors files that are in this process's memory as they are in the file: all processes have the same pages."""
    total = 0
    for entry in re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text()):
        if ".safetensors" in entry.partition("\n")[0]:
            sizes = {name: int(kb) * 1024 for name, kb in re.findall(r"^(\w+):\s+(\d+) kB", entry, re.M)}
            total += sizes["Rss"] - sizes["Anonymous"]
    return total


def measure(folder: Path, processes: int, parameters: float, names: tuple[str, ...] = tuple(CASES)) -> dict[str, list[dict[str, Any]]]:
    """Of each run what each process says; see `held`. One before them, on a tiny checkpoint, makes what all runs make once."""
    made = {kind: make(folder / kind, parameters, DTYPES[kind]) for kind in {CASES[name][0] for name in names}}
    runs = {"before": [*COMMON, *CASES[names[-1]][1]]}
    for name in names:
        file, keys = CASES[name]
        runs[name] = [*COMMON, *keys, f"model.model_name_or_path={made[file]}"]
    found = several(folder, processes, runs, held, begin)
    return {name: found[name] for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--gb", type=float, default=1.3, help="of the transformer in bf16")
    parser.add_argument("--processes", type=int, default=4)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name, said in measure(Path(folder), args.processes, args.gb * 5e8).items():
            print(json.dumps({"run": name} | {what: max(one[what] for one in said) for what in said[0]}), flush=True)


if __name__ == "__main__":
    main()
