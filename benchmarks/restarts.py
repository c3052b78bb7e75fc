"""Two machines of a run, here two launchers on one: processes and launchers are killed at random moments. Is it the run that never stopped?

    python benchmarks/restarts.py                       20 kills
    python benchmarks/restarts.py --kills 100 --seed 7

A kill is a SIGKILL for a launcher or for its process. By turns its moment is drawn from the seconds that the undisturbed run takes, counted
from the kill before, and from those in which it trains, counted from when the run has begun to train again: starts take much longer here.
A launcher that has ended is started anew, as Slurm or Kubernetes would; a process is its launcher's to start (--max_restarts).
A run that has ended is compared with the undisturbed one, as by benchmarks/kills.py. Prints a Markdown table of the kills by who was
killed; the exit code is 1 where a run was not exact, or did not end.
"""

import argparse
import itertools
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import psutil  # noqa: E402

from benchmarks.kills import KEYS, differences  # noqa: E402
from tests.tiny.run import environment, free_port, write_run  # noqa: E402

COMMAND = [sys.executable, "-m", "flow_factory", "tiny.yaml", *KEYS, "--num_processes", "2"]
WHO = ("launcher of machine 0", "launcher of machine 1", "process 0", "process 1")
PATIENCE = 900.0
"""Seconds after a kill in which a run must have ended."""


@dataclass
class Clock:
    """When the next kill is due."""

    chance: random.Random
    seconds: tuple[float, float]
    """That the undisturbed run takes, and of these those in which it trains."""
    trains: bool = False
    last: float = field(default_factory=time.time)
    """Of the kill before."""

    def __post_init__(self) -> None:
        self.moment, self.who = self.chance.uniform(0, self.seconds[self.trains]), self.chance.choice(WHO)

    def is_due(self, run: Path) -> bool:
        began = begun(run) if self.trains else self.last
        return began is not None and began >= self.last and time.time() - began > self.moment

    def next(self) -> "Clock":
        return Clock(self.chance, self.seconds, not self.trains)

    def __str__(self) -> str:
        return f"{self.moment:.1f} s {'into the training' if self.trains else 'after the kill before'}"


def begun(run: Path) -> float | None:
    """When this run was last ready to train."""
    file = run / "config.yaml"
    return file.stat().st_mtime if file.is_file() else None


@dataclass
class Cluster:
    """A run on two machines, and the scheduler that starts their launchers anew."""

    folder: Path
    port: int = field(default_factory=free_port)
    launchers: list["subprocess.Popen[bytes]"] = field(default_factory=list)
    starts: Counter[int] = field(default_factory=Counter)

    def begin(self) -> None:
        write_run(self.folder)
        self.launchers = [self.start(0), self.start(1)]

    def start(self, number: int) -> "subprocess.Popen[bytes]":
        place = [
            "--num_machines",
            "2",
            "--machine_rank",
            str(number),
            "--main_process_ip",
            "127.0.0.1",
            "--main_process_port",
            str(self.port),
        ]
        self.starts[number] += 1
        with (self.folder / f"said.{number}").open("ab") as said:
            flags = ["--max_restarts", "1000", "--rendezvous_timeout", "300"]
            return subprocess.Popen([*COMMAND, *place, *flags], cwd=self.folder, env=environment(), stdout=said, stderr=said)

    def goes_on(self) -> bool:
        """Starts anew whatever launcher has ended otherwise than well; whether any is left."""
        for number, launcher in enumerate(self.launchers):
            if launcher.poll() not in (None, 0):
                self.launchers[number] = self.start(number)
        return any(launcher.poll() is None for launcher in self.launchers)

    def kill(self, who: str) -> bool:
        """Whether it was there to be killed."""
        machine = int(who[-1])
        try:
            victim = psutil.Process(self.launchers[machine].pid)
            if who.startswith("process"):
                (victim,) = victim.children()
            victim.kill()
        except (psutil.NoSuchProcess, ValueError):  # it has ended, or has no process yet
            return False
        return True

    def end(self) -> None:
        for launcher in self.launchers:
            launcher.kill()
            launcher.wait()


def tell(folder: Path, clock: Clock, most: int, unbroken: Path) -> tuple[list[str], list[str]]:
    """(who was killed, what is wrong with the run in the end)."""
    cluster, kills, run = Cluster(folder), [], folder / "save" / "run"
    cluster.begin()
    try:
        while cluster.goes_on():
            if len(kills) < most and clock.is_due(run) and cluster.kill(clock.who):
                kills.append(clock.who)
                print(f"{folder.name}: {clock.who} killed {clock}", file=sys.stderr, flush=True)
                clock = clock.next()
            if time.time() - clock.last > PATIENCE:
                return kills, [f"{PATIENCE:.0f} s after {kills[-1:]} it has not ended"]
            time.sleep(0.02)
        return kills, differences(run, unbroken)
    finally:
        cluster.end()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments, and of who is killed")
    parser.add_argument("--folder", type=Path, help="kept afterwards; by default a temporary one")
    args = parser.parse_args()
    count: Counter[tuple[str, bool]] = Counter()
    with tempfile.TemporaryDirectory(prefix="restarts_") as temporary:
        folder = args.folder or Path(temporary)
        unbroken = folder / "unbroken"
        unbroken.mkdir(parents=True)
        write_run(unbroken)
        began = time.time()
        subprocess.run(COMMAND, cwd=unbroken, env=environment(), check=True, stdout=subprocess.DEVNULL)
        seconds = time.time() - began, time.time() - (begun(unbroken / "save" / "run") or began)
        print(f"the undisturbed run: {seconds[0]:.1f} s, {seconds[1]:.1f} s of training; seed {args.seed}", file=sys.stderr, flush=True)
        for number in itertools.count():
            if (left := args.kills - sum(count.values())) <= 0:
                break
            one = folder / f"run_{number}"
            one.mkdir()
            kills, wrong = tell(one, Clock(random.Random(f"{args.seed} {number}"), seconds), left, unbroken / "save" / "run")
            print(f"{one.name}: {len(kills)} kills, {'not exact: ' + '; '.join(wrong) if wrong else 'exact'}", file=sys.stderr, flush=True)
            count.update((who, not wrong) for who in kills)
    print("| killed | times | exact |\n|---|---|---|")
    for who in WHO:
        print(f"| {who} | {count[who, True] + count[who, False]} | {count[who, True]} |")
    return int(any(not exact for _, exact in count))


if __name__ == "__main__":
    sys.exit(main())
