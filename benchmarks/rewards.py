"""What a reward costs on a server: by body, form of pictures and batch, beside the same reward in the process that asks.

    python benchmarks/rewards.py [--side 512] [--seconds 3]

Starts `ff-reward serve` on this machine with one worker. `free` returns zeros, so that its row is the way there and back; `size` is
jpeg_compressibility. Everything is measured in one run, in turns, so that a busy machine slows all alike;
its CPU time it hardly changes. Last comes the main memory of each process. What a reward costs beside the sampling: overlap.py.
"""

import argparse
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import numpy as np
import psutil
from accelerate import Accelerator
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from flow_factory.hparams import RewardArguments  # noqa: E402 (found beside this file, installed or not)
from flow_factory.rewards import PointwiseRewardModel, RewardModelOutput  # noqa: E402
from flow_factory.rewards.scoring import RewardSet, load_rewards  # noqa: E402
from flow_factory.types import Row  # noqa: E402

BATCHES = (1, 16)
WAYS: dict[str, dict[str, Any]] = {
    "msgpack, raw": {"body": "msgpack"},
    "msgpack, raw, one request": {"body": "msgpack", "max_concurrent": 1},
    "multipart, raw": {"body": "multipart"},
    "msgpack, png": {"pictures": "png"},
    "msgpack, jpeg": {"pictures": "jpeg"},
    "older protocol (JSON, base64 of png)": {"older": True},
}
YAML = "rewards:\n  - {reward_model: 'rewards:Free', name: free, batch_size: 32}\n  - {reward_model: jpeg_compressibility, name: size}\n"


class Free(PointwiseRewardModel):
    """Costs nothing."""

    required_fields = ("image",)

    def __call__(self, prompt: list[str], image: list[Any]) -> RewardModelOutput:
        return RewardModelOutput([0.0] * len(image))


def loaded(model: str, batch: int, extra: dict[str, Any]) -> RewardSet:
    """A reward alone."""
    older = extra.pop("older", False)
    entry = RewardArguments(name="it", reward_model=model, batch_size=batch, extra_kwargs=extra, device="cpu")
    rewards = load_rewards([entry], (), Accelerator(cpu=True))[0]
    if older:  # as of a server without /rewards; /compute scores with the first reward, or the one that is asked for
        remote: Any = rewards.rewards[0].model
        remote.there, remote.pictures, name, ask = None, "png", extra["reward"], remote.link.request
        remote.link.request = lambda path, questions: ask(f"{path}?reward={name}", questions)
    return rewards


def speeds(works: dict[str, Callable[[], Any]], seconds: float, cpu: Callable[[], float]) -> dict[str, tuple[float, float]]:
    """Of each, in turns: seconds of a call, the median over the turns, and seconds of CPU, the mean."""
    times: dict[str, list[float]] = {name: [] for name in works}
    used = dict.fromkeys(works, 0.0)
    ends = time.perf_counter() + seconds * len(works)
    for work in works.values():
        work()
    while time.perf_counter() < ends or any(len(taken) < 4 for taken in times.values()):
        for name, work in works.items():
            begun, before = time.perf_counter(), cpu()
            work()
            times[name].append(time.perf_counter() - begun)
            used[name] += cpu() - before
    return {name: (statistics.median(taken), used[name] / len(taken)) for name, taken in times.items()}


def cpu_of(server: psutil.Process) -> Callable[[], float]:
    """Seconds of CPU so far, of this process and of the server's."""

    def cpu() -> float:
        spent = [process.cpu_times() for process in (server, *server.children(recursive=True))]
        return time.process_time() + sum(one.user + one.system for one in spent)

    return cpu


def measure(url: str, side: int, seconds: float, cpu: Callable[[], float]) -> None:
    """Prints the table."""
    luck = np.random.default_rng(0)
    coarse = [Image.fromarray(luck.integers(0, 256, (side // 16, side // 16, 3), dtype=np.uint8)) for _ in range(max(BATCHES))]
    pictures = [image.resize((side, side), Image.Resampling.BICUBIC) for image in coarse]
    print(f"pictures of {side} pixels a second, by batch; in brackets milliseconds of CPU a picture, of both sides together\n")
    print("| way | " + " | ".join(f"`free`, {n}" for n in BATCHES) + " | " + " | ".join(f"`size`, {n}" for n in BATCHES) + " |")
    print("|---" * (1 + 2 * len(BATCHES)) + "|")
    found: dict[str, list[str]] = {way: [] for way in ("in this process", *WAYS)}
    for name, local in (("free", "rewards:Free"), ("size", "jpeg_compressibility")):
        for batch in BATCHES:
            sets = {"in this process": loaded(local, batch, {})}
            sets |= {way: loaded("remote", batch, {"server_url": url, "reward": name, **keys}) for way, keys in WAYS.items()}
            rows, media = [Row(k, "a") for k in range(batch)], [[one] for one in pictures[:batch]]
            works = {way: lambda one=one, rows=rows, media=media: one.score(rows, media) for way, one in sets.items()}
            for way, (once, spent) in speeds(works, seconds, cpu).items():
                found[way].append(f"{batch / once:,.0f} ({1000 * spent / batch:.2g})")
    for way, cells in found.items():
        print(f"| {way} | {' | '.join(cells)} |", flush=True)


@contextmanager
def serving(folder: Path, yaml: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The address and the process of `ff-reward serve`, which finds classes of this folder's scripts, with one worker on the CPU."""
    (folder / "rewards.yaml").write_text(yaml)
    command = [sys.executable, "-m", "flow_factory.commands.reward", "serve", f"{folder}/rewards.yaml", "--port", "0", "--devices", "cpu"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent)
    try:
        assert server.stdout is not None
        address = re.search(r"http://\S+:\d+", server.stdout.readline())
        assert address is not None
        while httpx.get(f"{address[0]}/ready", timeout=60).status_code != 200 and server.poll() is None:
            time.sleep(0.2)
        yield address[0], server
    finally:
        server.terminate()
        server.wait(60)


def held(server: psutil.Process) -> str:
    """Megabytes of main memory that each process holds now."""
    worker, *_ = sorted(server.children(recursive=True), key=lambda process: -process.memory_info().rss)
    sizes = {"the server": server, "its worker": worker, "the process that asks": psutil.Process()}
    return ", ".join(f"{name} {process.memory_info().rss / 1e6:,.0f} MB" for name, process in sizes.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=3)
    args = parser.parse_args()
    with TemporaryDirectory() as folder, serving(Path(folder), YAML) as (address, server):
        measure(address, args.side, args.seconds, cpu_of(psutil.Process(server.pid)))
        print(f"\nmain memory: {held(psutil.Process(server.pid))}")


if __name__ == "__main__":
    main()
