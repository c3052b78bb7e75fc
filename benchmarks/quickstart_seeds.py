"""The quick start's figures: full runs with several seeds, all on the same held-out prompts and noise.

    python benchmarks/quickstart_seeds.py            three seeds, one after the other, on a quiet machine

Prints a Markdown table of held-out strict accuracy and reward before and after, the gain's 95 % interval over the pairs, and minutes: of
the clock from the first evaluation to the end, and of all cores for the whole command.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from flow_factory.reporting.paired_gains import compare  # noqa: E402 (found beside this file, installed or not)


def run(seed: int, folder: Path) -> tuple[list[dict[str, float]], float]:
    """The metrics of one full run, and the minutes of all cores that it took."""
    before = cpu_minutes()
    command = [sys.executable, "-m", "flow_factory", "examples/quickstart.yaml", f"train.seed={seed}"]
    subprocess.run([*command, f"run_name={folder.name}", f"log.save_dir={folder.parent}"], cwd=ROOT, check=True)
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()], cpu_minutes() - before


def cpu_minutes() -> float:
    """Of all programs that this one has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (used.ru_utime + used.ru_stime) / 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 1, 2])
    parser.add_argument("--save-dir", type=Path, default=Path("save"))
    args = parser.parse_args()
    gains = []
    head = ("seed", "strict before", "strict after", "gain", "95 % interval", "reward before, after", "minutes", "CPU minutes")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for seed in args.seeds:
        folder = args.save_dir / f"seed_{seed}"
        records, cpu = run(seed, folder)
        evals = [r for r in records if "eval/reward_strict_mean" in r]
        first, last = evals[0], evals[-1]
        gains.append(last["eval/reward_strict_mean"] - first["eval/reward_strict_mean"])
        low, high = compare(folder).intervals["reward_strict_mean"]
        strict = f"{first['eval/reward_strict_mean']:.3f} | {last['eval/reward_strict_mean']:.3f}"
        rewards = f"{first['eval/reward_shapes_mean']:.3f}, {last['eval/reward_shapes_mean']:.3f}"
        minutes = (records[-1]["time"] - first["time"]) / 60
        lines.append(f"| {seed} | {strict} | {gains[-1]:+.3f} | {low:+.3f} to {high:+.3f} | {rewards} | {minutes:.1f} | {cpu:.1f} |")
    print("\n".join(lines))
    print(
        f"\ngain {statistics.mean(gains):+.3f}, standard deviation over the seeds {statistics.stdev(gains):.3f}" if len(gains) > 1 else ""
    )


if __name__ == "__main__":
    main()
