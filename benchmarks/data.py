"""From the command to the first micro-batch: seconds, bytes and memory by the number of rows, without and with a cache.

    python benchmarks/data.py                            this checkout, 100 to 1,000,000 rows; half an hour
    python benchmarks/data.py --trees . ../old           beside another one, such as of an earlier commit, in turn
    python benchmarks/data.py --rows 100 25000 --processes 1

The run draws 20 epochs of 48 rows with the tests' tiny FLUX.1. Its encoder is a dummy that gives each row what the real one would take:
512 x 4096 numbers of 16 bits, 4 MB; it takes 10 ms for it, in which the CPU is free, as it is beside a GPU. "Warm" is a second start, where
every other row is in the cache, too, in shards that are sparse files: their bytes would not be right, and nobody reads them. Of rows beyond
100,000 these are as small as 4 KB. A tree that encodes every row of a data set does so for 8 GB at most, and beyond that has the tiny
encoders' own small rows.
What the disk had cached before is not forgotten between runs. CPU seconds are a process's own, and mean something beside other work, too.
Prints a Markdown table.
"""

import argparse
import json
import os
import random
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ROWS = [100, 1_000, 10_000, 25_000, 100_000, 1_000_000]
ROW = 512 * 4096 * 2
"""Bytes of a row of FLUX.1."""
DEVICE = 0.01
"""Seconds in which a row is encoded: 4.8 TFLOP of T5-XXL."""
EVERY_GB, EVERY_ROWS = 8, 10_000
"""What a tree encodes that encodes every row."""
WORDS = "a an the red blue photo painting of horse cat dog hill city night sunset over under with golden small large light"
CONFIG = """\
mixed_precision: "no"
data: {{dataset_dir: {folder}, cache_dir: {folder}/cache}}
model: {{model_name_or_path: {checkpoint}, model_type: flux1, finetune_type: lora, target_modules: default}}
scheduler: {{num_sde_steps: 1}}
train:
  {{resolution: 32, max_sequence_length: 16, num_inference_steps: 3, max_epochs: 20, group_size: 4, per_device_batch_size: 2,
  unique_sample_num_per_epoch: 48, gradient_step_per_epoch: 2}}
eval: {{eval_freq: 0}}
log: {{run_name: run, logging_backend: none, save_dir: {folder}/save, save_freq: 0}}
rewards: {{reward_model: jpeg_compressibility, name: size}}
num_processes: {processes}
"""


# -- one process of a run -----------------------------------------------------------------------------------------------------------------


class Encoder:
    """Stands for `Flux1.encode`, and watches what is between its calls."""

    def __init__(self, real: Any, size: int):
        self.real, self.size, self.rows, self.inside = real, size, 0, 0.0
        self.first: dict[str, Any] = {}
        self.began = self.ended = 0.0

    def __call__(self, adapter: Any, row: Any, call: Any) -> dict[str, Any]:
        import torch

        began = time.perf_counter()
        cond = dict(self.first or self.real(adapter, row, call)) if self.size else self.real(adapter, row, call)
        if self.size:
            self.first = {k: v for k, v in cond.items() if k != "ballast"}
            cond["ballast"] = torch.full((512, 4096), row.id % 251 + 1, dtype=torch.bfloat16)
            cond["ballast"].view(torch.int32)[0, 0] = row.id
            time.sleep(max(0.0, began + DEVICE - time.perf_counter()))
        self.ended = time.perf_counter()
        if self.rows:
            self.inside += self.ended - began
        else:
            self.began = self.ended
        self.rows += 1
        return cond

    @property
    def overhead(self) -> float:
        """Seconds a row beside the encoder, of all but the first."""
        return (self.ended - self.began - self.inside) / max(1, self.rows - 1)


def member(config: Path, size: int, fill: int) -> None:
    """Goes to the first micro-batch, says what it cost, and ends; maybe it fills the cache with so many rows a shard before."""
    import torch
    import torch.distributed as dist

    from flow_factory.config import load_config
    from flow_factory.models.flux1 import Flux1
    from flow_factory.train import build
    from flow_factory.training.rollout import RolloutCollector

    encoder, encoded_by, repeat, sample = Encoder(Flux1.encode, size), Flux1.encoded_by, Flux1.repeat, RolloutCollector.sample
    Flux1.encode = lambda adapter, row, call: encoder(adapter, row, call)  # type: ignore[method-assign, assignment]
    Flux1.encoded_by = lambda *given: {k: v for k, v in encoded_by(*given).items() if k != "ballast"}  # type: ignore[method-assign]
    Flux1.repeat = lambda adapter, cond, n: repeat(adapter, {k: v for k, v in cond.items() if k != "ballast"}, n)  # type: ignore[method-assign]
    torch.set_num_threads(1)

    def first(collector: Any, *given: Any) -> Any:
        sample(collector, *given)
        said = {"seconds": time.time() - float(os.environ["BEGAN"]), "rows": encoder.rows, "overhead": encoder.overhead}
        said["cpu"] = time.process_time()
        said["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        print("SAID", json.dumps(said), flush=True)
        if fill:
            fill_cache(collector.context.conds.cache, collector.context.rows, fill)
        if dist.is_initialized():
            dist.barrier()
        os._exit(0)

    RolloutCollector.sample = first  # type: ignore[method-assign, assignment]
    build(load_config(config)).trainer.epoch()


def fill_cache(cache: Any, rows: Sequence[Any], shard: int) -> None:
    """Enters every row that the cache lacks, in sparse shards of so many rows."""
    import numpy as np

    from flow_factory.data.index import MAGIC, PART, RECORD, halves
    from flow_factory.data.index import ROW as STRUCTURE

    keys = (bytes.fromhex(cache.key(row)) for row in rows)
    lacking = [key for key in keys if cache.shards.holder(key) is None]
    size = ROW if len(rows) <= 100_000 else 4096
    for number, begin in enumerate(range(0, len(lacking), shard)):
        records, end = [], 0
        for key in lacking[begin : begin + shard]:
            records += [(*halves(key), end, 512, STRUCTURE), (*halves(os.urandom(16)), end + 512, size, PART)]
            end += 512 + size
        path = cache.family.folder / f"{cache.family.name}-sparse{number:06}.shard"
        with path.open("wb") as file:
            file.truncate(end)
        path.with_suffix(".index").write_bytes(MAGIC + np.array(records, RECORD).tobytes())


# -- all runs -----------------------------------------------------------------------------------------------------------------------------


def start(tree: Path, folder: Path, processes: int, size: int, fill: int = 0) -> dict[str, float]:
    """Of one start: the largest seconds, CPU seconds and memory (GB) of a process, rows encoded by all, and overhead of a row (ms)."""
    shutil.rmtree(folder / "save", ignore_errors=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    began = {"PYTHONPATH": tree, "HF_HUB_OFFLINE": 1, "OMP_NUM_THREADS": 1, "BEGAN": time.time()}
    command = [sys.executable, __file__, "--member", str(folder / "run.yaml"), str(size)]
    running = []
    for rank in range(processes):
        mine: Mapping[str, Any] = os.environ | began | (group | {"RANK": rank, "LOCAL_RANK": rank} if processes > 1 else {})
        running.append(
            subprocess.Popen(
                [*command, str(0 if rank else fill)], env={k: str(v) for k, v in mine.items()}, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, text=True, cwd=folder,
            )
        )  # fmt: skip
    told = [process.communicate()[0] for process in running]
    said = [[json.loads(line[5:]) for line in text.splitlines() if line.startswith("SAID")] for text in told]
    if not all(said):
        raise RuntimeError(f"a run of {tree} did not come to its first micro-batch:\n" + "\n".join(text[-3000:] for text in told))
    each = [one[0] for one in said]
    encoding = [one for one in each if one["rows"] > 1]
    return {
        **{key: max(one[key] for one in each) for key in ("seconds", "cpu", "memory")},
        "rows": sum(one["rows"] for one in each),
        "overhead": 1e3 * sum(one["overhead"] for one in encoding) / max(1, len(encoding)),
    }  # fmt: skip


def disk(folder: Path) -> float:
    """GB that its files take."""
    return sum(p.stat().st_blocks * 512 for p in folder.rglob("*") if p.is_file()) / 1e9


def write_rows(folder: Path, many: int) -> None:
    """Prompts of some 20 words, all different."""
    rng, words = random.Random(0), WORDS.split()
    with (folder / "train.jsonl").open("w") as file:
        file.writelines(json.dumps({"prompt": f"{' '.join(rng.choices(words, k=18))} {k}"}) + "\n" for k in range(many))


def measured(trees: Sequence[Path], many: int, processes: int, checkpoint: Path) -> None:
    """Prints the lines of all trees, cold and warm; they take turns."""
    for tree in trees:
        with tempfile.TemporaryDirectory(prefix="data_") as name:
            folder = Path(name)
            write_rows(folder, many)
            (folder / "run.yaml").write_text(CONFIG.format(folder=folder, checkpoint=checkpoint, processes=processes))
            every = not (tree / "flow_factory" / "data" / "index.py").is_file()
            if every and many > EVERY_ROWS:
                continue
            size = 0 if every and many * ROW > EVERY_GB * 1e9 else ROW
            fill = 0 if every else 64 if many <= 100_000 else 16_384
            for warm in (False, True):
                said = start(tree, folder, processes, size, 0 if warm else fill)
                wrote = disk(folder / "cache")
                kind = f"{'warm' if warm else 'cold'}{'' if size else ', small rows'}"
                cells = [tree.name, f"{many:,}", processes, kind, f"{said['seconds']:.1f}", f"{said['cpu']:.1f}", f"{said['rows']:.0f}"]
                cells += ["" if warm else f"{said['overhead']:.1f}", "" if warm else f"{wrote:.2f}", f"{said['memory']:.2f}"]
                print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--trees", type=Path, nargs="+", default=[ROOT])
    parser.add_argument("--member", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.member:
        member(Path(args.member[0]), int(args.member[1]), int(args.member[2]))
        return
    sys.path.insert(0, str(ROOT))
    from tests.tiny.flux import save_flux

    columns = (
        "tree",
        "rows",
        "processes",
        "start",
        "seconds",
        "CPU seconds",
        "rows encoded",
        "ms a row beside the encoder",
        "GB written",
        "GB of memory",
    )
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)
    with tempfile.TemporaryDirectory(prefix="flux_") as checkpoint:
        save_flux(Path(checkpoint))
        for many in args.rows:
            for processes in args.processes:
                measured([tree.resolve() for tree in args.trees], many, processes, Path(checkpoint))


if __name__ == "__main__":
    main()
