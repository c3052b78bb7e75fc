"""The quick start's figures: full runs with several seeds, all on the same held-out prompts and noise.

    python benchmarks/quickstart_seeds.py            three seeds, one after the other, on a quiet machine

Prints a Markdown table of held-out strict accuracy and reward before and after, and the minutes of training.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run(seed: int, save_dir: Path) -> list[dict[str, float]]:
    """The metrics of one full run."""
    folder = save_dir / f"seed_{seed}"
    command = [sys.executable, "-m", "flow_factory", "examples/quickstart.yaml", f"train.seed={seed}"]
    subprocess.run([*command, f"run_name={folder.name}", f"log.save_dir={save_dir}"], cwd=ROOT, check=True)
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 1, 2])
    parser.add_argument("--save-dir", type=Path, default=Path("save"))
    args = parser.parse_args()
    gains = []
    lines = ["| seed | strict before | strict after | gain | reward before | reward after | minutes |", "|---|---|---|---|---|---|---|"]
    for seed in args.seeds:
        records = run(seed, args.save_dir)
        evals = [r for r in records if "eval/reward_strict_mean" in r]
        first, last = evals[0], evals[-1]
        gains.append(last["eval/reward_strict_mean"] - first["eval/reward_strict_mean"])
        cells = [first["eval/reward_strict_mean"], last["eval/reward_strict_mean"], gains[-1]]
        cells += [first["eval/reward_shapes_mean"], last["eval/reward_shapes_mean"]]
        lines.append(f"| {seed} | " + " | ".join(f"{c:.3f}" for c in cells) + f" | {(records[-1]['time'] - first['time']) / 60:.1f} |")
    print("\n".join(lines))
    print(
        f"\ngain {statistics.mean(gains):+.3f}, standard deviation over the seeds {statistics.stdev(gains):.3f}" if len(gains) > 1 else ""
    )


if __name__ == "__main__":
    main()
