"""Runs that are killed at random moments, and go on until they end: are they the run that never stopped, to the bit?

    python benchmarks/kills.py                          50 kills
    python benchmarks/kills.py --kills 400 --jobs 2 --seed 7

A life of a tiny run ends by a signal (mostly SIGKILL, some SIGTERM and SIGINT) at a moment drawn from the seconds that the undisturbed run
takes; then the run goes on by model.resume_path=auto, and may be killed again. A run that has ended is compared with the undisturbed one:
weights and training state of its last checkpoint, and its metrics but for the times. Prints a Markdown table of the kills by signal and by
where they fell; the exit code is 1 where a run was not exact. Lives are forked from a process that has imported everything, so that their
start is reading, loading and encoding.
"""

import argparse
import itertools
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch  # noqa: E402

from flow_factory.cli import main as ff_train  # noqa: E402
from flow_factory.training.meter import Meter  # noqa: E402
from flow_factory.training.saver import Saver  # noqa: E402
from tests.tiny.run import environment, logged, read_state, write_run  # noqa: E402

EPOCHS = 4
KEYS = (
    f"train.max_epochs={EPOCHS}", "train.lr_scheduler=cosine", "train.kl_beta=0.1", "log.save_freq=1", "log.save_model_only=false",
    "eval.eval_freq=2", "model.resume_path=auto",
)  # fmt: skip
SIGNALS = (signal.SIGKILL,) * 6 + (signal.SIGTERM, signal.SIGINT)
PLACES = {"start": "start", "rollout": "rollout", "reward": "rollout", "optimise": "learning", "eval": "evaluation", "save": "saving"}
"""By what the life has noted last; a checkpoint is written beside what follows, so some kills after a "saving" fall into it too."""
PATIENCE = 600.0
"""Seconds after which a life that is left alone has hung."""
PHASES = "phases"
"""The file in which a life notes what it does."""
lives = multiprocessing.get_context("forkserver")


@dataclass
class Kill:
    """A life that was ended by a signal."""

    signal: signal.Signals
    place: str
    code: int


@dataclass
class Story:
    """A run from its first start to its end."""

    folder: Path
    kills: list[Kill] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        fell = ", ".join(f"{kill.signal.name} in {PLACES[kill.place]}" for kill in self.kills) or "never killed"
        return "\n  ".join([f"{self.folder.name}: {fell}: {'not ' if self.wrong else ''}exact", *self.wrong])


def live(folder: Path) -> None:
    """A life: `ff-train tiny.yaml` in a process of its own, which notes in a file what it does."""
    clean = environment()
    os.environ.clear()
    os.environ.update(clean)
    os.chdir(folder)
    with (folder / "said").open("a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    torch.set_num_threads(1)
    phase, save = Meter.phase, Saver.save
    phases = (folder / PHASES).open("a", buffering=1)

    @contextmanager
    def noted(self: Meter, name: str) -> Iterator[None]:
        phases.write(f"{name}\n")
        with phase(self, name):
            yield

    def noted_save(self: Saver, *given: object) -> None:
        phases.write("save\n")
        save(self, *given)  # type: ignore[arg-type]

    Meter.phase, Saver.save = noted, noted_save  # type: ignore[method-assign]
    phases.write("start\n")
    sys.exit(ff_train(["tiny.yaml", *KEYS]))


def lived(folder: Path, moment: float, sign: signal.Signals) -> tuple[int, float, str]:
    """(exit code, seconds, where the signal fell or "" where the life had ended before) of the next life of a run."""
    phases = folder / PHASES
    phases.write_text("")
    process = lives.Process(target=live, args=(folder,))
    process.start()
    while process.is_alive() and not phases.stat().st_size:
        time.sleep(0.002)
    begun, place = time.monotonic(), ""
    process.join(moment)
    if process.exitcode is None and process.pid is not None:
        place = phases.read_text().split()[-1]
        os.kill(process.pid, sign)
    process.join(PATIENCE)
    if process.exitcode is None:
        process.kill()
        process.join()
    return process.exitcode or 0, time.monotonic() - begun, place


def tell(folder: Path, chance: random.Random, seconds: float, unbroken: Path) -> Story:
    """Kills a run until it ends before it is killed, and compares it."""
    write_run(folder)
    story = Story(folder)
    while True:
        sign = chance.choice(SIGNALS)
        code, _, place = lived(folder, chance.uniform(0, seconds), sign)
        if place:
            story.kills.append(Kill(sign, place, code))
        if code == 0:
            story.wrong += differences(folder / "save" / "run", unbroken)
            return story
        if code != (-sign if sign is signal.SIGKILL else 130) or not place:
            story.wrong.append(f"exit code {code} after {sign.name} in {place or 'nothing'}: {(folder / 'said').read_text()[-600:]}")
            return story


def differences(run: Path, unbroken: Path) -> list[str]:
    """What of a run that has ended is not as it would have been."""
    last, right = (folder / "checkpoints" / f"epoch_{EPOCHS}" for folder in (run, unbroken))
    state, wanted = read_state(last), read_state(right)
    wrong = [k for k in sorted({*state, *wanted}) if k not in state or k not in wanted or not torch.equal(state[k], wanted[k])]
    files = sorted(str(p.relative_to(right)) for p in right.rglob("*") if p.suffix == ".safetensors" or p.name == "progress.json")
    wrong += [f for f in files if (last / f).read_bytes() != (right / f).read_bytes()]
    if logged(run) != logged(unbroken):
        wrong.append("metrics.jsonl")
    return wrong + [p.name for p in (run / "checkpoints").iterdir() if p.name.startswith(".partial")]


def table(stories: Sequence[Story]) -> str:
    """Kills by where they fell and by signal, and those of runs that ended exactly."""
    all_kills = [(PLACES[kill.place], kill.signal.name, not story.wrong) for story in stories for kill in story.kills]
    count, names = Counter(all_kills), ("SIGKILL", "SIGTERM", "SIGINT")
    rows = [
        [place, *(sum(count[place, name, exact] for exact in (True, False)) for name in names)] for place in dict.fromkeys(PLACES.values())
    ]
    lines = ["| fell into | " + " | ".join(names) + " | exact |", "|---|---|---|---|---|"]
    for place, *numbers in [*rows, ["all", *map(sum, zip(*(row[1:] for row in rows), strict=True))]]:
        exact = sum(n for (where, _, right), n in count.items() if right and place in (where, "all"))
        lines.append(f"| {place} | " + " | ".join(map(str, numbers)) + f" | {exact} of {sum(numbers)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="at least so many")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and signals")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, each on one thread")
    parser.add_argument("--folder", type=Path, help="kept afterwards; by default a temporary one")
    args = parser.parse_args()
    lives.set_forkserver_preload(["flow_factory.train", "tests.tiny.run"])
    with tempfile.TemporaryDirectory(prefix="kills_") as temporary:
        folder = args.folder or Path(temporary)
        unbroken = folder / "unbroken"
        unbroken.mkdir(parents=True)
        write_run(unbroken)
        code, seconds, _ = lived(unbroken, PATIENCE, signal.SIGKILL)
        assert code == 0, (unbroken / "said").read_text()
        print(f"the undisturbed run: {EPOCHS} epochs in {seconds:.1f} s; seed {args.seed}", file=sys.stderr)
        stories: list[Story] = []
        numbers = itertools.count()

        def tell_more(job: int) -> None:
            while sum(len(story.kills) for story in stories) < args.kills:
                one = folder / f"run_{next(numbers)}"
                one.mkdir()
                stories.append(tell(one, random.Random(f"{args.seed} {one.name}"), seconds, unbroken / "save" / "run"))
                print(stories[-1], file=sys.stderr)

        with ThreadPoolExecutor(args.jobs) as pool:
            list(pool.map(tell_more, range(args.jobs)))
    print(f"{len(stories)} runs, {sum(not story.wrong for story in stories)} exact\n\n{table(stories)}")
    return int(any(story.wrong for story in stories))


if __name__ == "__main__":
    sys.exit(main())
