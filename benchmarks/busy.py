"""Threads on a machine that is idle, one that is busy, and one that is rationed: seconds of an epoch of 96 quick-start pictures.

    python benchmarks/busy.py                          every way of waiting in every place, twice, interleaved; 15 minutes
    python benchmarks/busy.py --ways program default   only some of the ways

Places: the machine as it is; beside a busy loop a core; in a cgroup with half a core less, where root may make one.
Prints a Markdown table of medians; the first epoch of a run is left out.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

ROOT = Path(__file__).parent.parent
CORES = len(os.sched_getaffinity(0))
WAYS: dict[str, dict[str, str]] = {
    "program": {},
    "default": {"OMP_NUM_THREADS": str(CORES), "GOMP_SPINCOUNT": "300000"},
    "spin 1000": {"OMP_NUM_THREADS": str(CORES), "GOMP_SPINCOUNT": "1000"},
    "spin 3000": {"OMP_NUM_THREADS": str(CORES), "GOMP_SPINCOUNT": "3000"},
    "spin 10000": {"OMP_NUM_THREADS": str(CORES), "GOMP_SPINCOUNT": "10000"},
    "passive": {"OMP_NUM_THREADS": str(CORES), "OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
"""What `ff-train` chooses, what OpenMP does by itself, and others."""
QUOTA = Path("/sys/fs/cgroup/cpu/flow_factory_busy"), Path("/sys/fs/cgroup/flow_factory_busy")
"""Where a cgroup of version 1, and one of version 2, is made."""
Enter = Callable[[], None]


@contextlib.contextmanager
def idle() -> Iterator[Enter]:
    """The machine as it is."""
    yield lambda: None


@contextlib.contextmanager
def busy() -> Iterator[Enter]:
    """Beside a loop a core that never sleeps."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(CORES)]
    try:
        yield lambda: None
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


@contextlib.contextmanager
def rationed() -> Iterator[Enter]:
    """In a group with half a core less than there are.

    Raises:
        OSError: this user may make none.
    """
    most = str(int((CORES - 0.5) * 100_000))
    group, file, text = (
        (QUOTA[0], "cpu.cfs_quota_us", most)
        if QUOTA[0].parent.joinpath("cgroup.procs").exists()
        else (QUOTA[1], "cpu.max", f"{most} 100000")
    )
    group.mkdir()
    try:
        (group / file).write_text(text)
        yield lambda: (group / "cgroup.procs").write_text(str(os.getpid())) and None  # in the child, before it is Python
    finally:
        group.rmdir()


PLACES: dict[str, Callable[[], AbstractContextManager[Enter]]] = {
    "idle": idle, "beside busy loops": busy, f"quota of {CORES - 0.5:g} cores": rationed,
}  # fmt: skip


def seconds(way: dict[str, str], enter: Enter, epochs: int) -> float:
    """Of an epoch: the median of a run's epochs after the first."""
    with tempfile.TemporaryDirectory() as folder:
        small = ["train.unique_sample_num_per_epoch=4", f"train.max_epochs={epochs + 1}", "train.lr_warmup_steps=0", "eval.eval_freq=0"]
        command = [sys.executable, "-m", "flow_factory", "examples/quickstart/grpo.yaml", *small, f"log.save_dir={folder}", "run_name=busy"]
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "MKL_", "FF_"))}
        subprocess.run(command, cwd=ROOT, env={**clean, "PYTHONPATH": str(ROOT), **way}, check=True, capture_output=True, preexec_fn=enter)
        records = [json.loads(line) for line in Path(folder, "busy", "metrics.jsonl").read_text().splitlines()]
    return statistics.median([r["time/epoch_s"] for r in records if "time/epoch_s" in r][1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    found: dict[tuple[str, str], list[float]] = {}
    for _ in range(args.rounds):
        for place, make in PLACES.items():
            try:
                with make() as enter:
                    for way in args.ways:
                        found.setdefault((way, place), []).append(seconds(WAYS[way], enter, args.epochs))
            except OSError as error:
                print(f"left out: {place} ({error})", file=sys.stderr)
    places = [place for place in PLACES if any(p == place for _, p in found)]
    print("\n".join([f"| threads and waiting | {' | '.join(places)} |", "|---|" + "---|" * len(places)]))
    for way in args.ways:
        print(f"| {way} | " + " | ".join(f"{statistics.median(found[way, place]):.1f} s" for place in places) + " |")


if __name__ == "__main__":
    main()
