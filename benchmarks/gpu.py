"""Speed and memory of published sizes on one GPU, without a hub or a network: random weights, named variants, a JSON line for each.

    python benchmarks/gpu.py --minutes 10                                      the most telling variants that fit the time
    python benchmarks/gpu.py --only flux1-dev:eager flux1-dev:compile+auto     these
    python benchmarks/gpu.py --only flux1-dev:eager --rounds 3 --beside public='python their.py {folder}'
    python benchmarks/gpu.py --toy --only flux1-dev:eager                      at toy size, on a CPU too

A variant is some settings joined by + (see gpu_plan.py), in a process of its own with a limit on its time. One that fails, or takes too
long, is a line with the error's; the next one goes on. Another trainer's command, in which {folder} is where checkpoint/, train.txt and
config.yaml are, runs in turn with our first variant, and prints a JSON line of the same form; what it leaves out is left out.
"""

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.gpu_plan import ORDER, Job, choose, expected, jobs, limit  # noqa: E402 (found beside this file, installed or not)

Line = dict[str, Any]


def run(command: list[str], seconds: float, log: Path) -> Line:
    """The last JSON line that a command prints, or {"error": ...}; what else it says is added to the log."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    begin = log.stat().st_size if log.exists() else 0
    with log.open("a") as stream:
        process = subprocess.Popen(
            command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=stream, text=True, start_new_session=True
        )
        try:
            out, _ = process.communicate(timeout=max(1.0, seconds))
        except subprocess.TimeoutExpired:
            return {"error": f"it was ended after {seconds:.0f} s"}
        finally:
            end(process)
    if process.returncode:
        return {"error": blamed(log.read_bytes()[begin:].decode(errors="replace")) or f"exit code {process.returncode}"}
    lines = [line for line in out.splitlines() if line.startswith("{")]
    return json.loads(lines[-1]) if lines else {"error": "it printed no JSON line"}


def end(process: subprocess.Popen[str]) -> None:
    """It and all that it has started are gone."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def blamed(said: str) -> str | None:
    """The line of an output that names an error."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    named = [line for line in lines if line.startswith("error:") or line.split(":")[0].endswith(("Error", "Exception"))]
    return ([*lines[-1:], *named] or [None])[-1]


class Bench:
    """Checkpoints that have been drawn, and what the variants took so far."""

    def __init__(self, folder: Path, log: Path, args: argparse.Namespace):
        self.folder, self.log, self.args = folder, log, args
        self.deadline = time.monotonic() + 60 * args.minutes
        self.known: dict[tuple[str, str], float] = {}
        self.unusable: dict[str, str] = {}
        """Model -> why its checkpoint could not be drawn."""

    @property
    def left(self) -> float:
        return self.deadline - time.monotonic()

    def drawn(self, model: str) -> Path:
        """The folder of a model's checkpoint, made now if it is not there."""
        folder = self.folder / model
        if not folder.exists() and model not in self.unusable:
            command = [sys.executable, "-m", "benchmarks.gpu_variant", "draw", model, str(folder), *(["--toy"] if self.args.toy else [])]
            done = run(command, self.left, self.log)
            if done["error"] != "it printed no JSON line":
                self.unusable[model] = done["error"]
        return folder

    def measured(self, each: Job) -> Line:
        """The line of one job."""
        start = time.monotonic()
        folder = self.drawn(each.model)
        if each.model in self.unusable:
            return {"error": f"its checkpoint could not be drawn: {self.unusable[each.model]}"}
        start_of_job = time.monotonic()
        if each.command is not None:
            command = shlex.split(each.command.replace("{folder}", str(folder)))
        else:
            keys = [*each.overrides, *self.args.set, f"run_name={each.variant}-{each.round}"]
            command = [sys.executable, "-m", "benchmarks.gpu_variant", "measure", str(folder), *keys, "--epochs", str(self.args.epochs)]
        line = run(command, limit(each, self.left, self.args.limit, self.known), self.log)
        took = time.monotonic() - start_of_job
        if "error" not in line:
            self.known[each.model, each.variant] = took
        return line | {"wall_s": round(took, 1), "drawing_s": round(start_of_job - start, 1)}

    def lines(self) -> Iterator[Line]:
        """One for each job, those for which there was no time last."""
        waiting = jobs(self.args.only or ORDER, dict(entry.split("=", 1) for entry in self.args.beside), self.args.rounds)
        while (each := choose(waiting, self.left, self.known)) is not None:
            waiting.remove(each)
            yield named(each) | self.measured(each)
        for each in waiting:
            yield named(each) | {"skipped": f"about {expected(each, self.known):.0f} s, and {max(0.0, self.left):.0f} are left"}


def named(each: Job) -> Line:
    ours = {"overrides": each.overrides} if each.command is None else {"command": each.command}
    return {"model": each.model, "variant": each.variant, "round": each.round, **ours}


@contextmanager
def memory_disk(asked: Path | None) -> Iterator[Path]:
    """Where checkpoints are drawn: memory disk if it has 32 GB, for reading them is then not what is measured."""
    shared = Path("/dev/shm")
    roomy = shared.is_dir() and shutil.disk_usage(shared).free > 32e9
    with tempfile.TemporaryDirectory(prefix="gpu_", dir=asked or (shared if roomy else None)) as name:
        yield Path(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15, help="for everything, drawing the checkpoints included")
    parser.add_argument("--only", nargs="+", metavar="MODEL:VARIANT", help="instead of gpu_plan.ORDER")
    parser.add_argument("--epochs", type=int, default=1, help="timed ones of each variant, after one to warm up")
    parser.add_argument("--limit", type=float, default=300, help="seconds of one variant at most")
    parser.add_argument("--rounds", type=int, default=1, help="how often everything is measured, in turn")
    parser.add_argument("--beside", nargs="+", default=[], metavar="NAME=COMMAND", help="other trainers")
    parser.add_argument("--set", nargs="+", default=[], metavar="section.key=value", help="for the config of every variant")
    parser.add_argument("--toy", action="store_true", help="tiny checkpoints, to see that all is well")
    parser.add_argument("--folder", type=Path, help="where checkpoints are drawn; else memory disk, if there is room")
    parser.add_argument("--log", type=Path, default=Path(os.devnull), help="what the processes say")
    args = parser.parse_args()
    try:
        jobs(args.only or ORDER, {}, 1)
    except ValueError as error:
        parser.error(f"--only {error}")
    with memory_disk(args.folder) as folder:
        log = folder / "log" if args.log == Path(os.devnull) else args.log.resolve()
        for line in Bench(folder, log, args).lines():
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
