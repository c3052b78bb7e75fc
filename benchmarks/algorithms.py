"""All algorithms on the quick start's model: held-out accuracy against epochs, three seeds each.

    python benchmarks/algorithms.py                        every algorithm, three seeds, 15 epochs or fewer if its config has fewer
    python benchmarks/algorithms.py --algorithms nft awm   some of them; runs that are complete in --save-dir are not repeated
    python benchmarks/algorithms.py --recipes              trains nothing: assets/algorithms_gains.png of flow_factory/recipes

Each run is `ff-train examples/quickstart/<algorithm>.yaml` (NFT: `examples/quickstart.yaml`). Draws `assets/algorithms.png` and prints a
Markdown table of held-out strict accuracy on the quick start's 256 pairs of caption and noise, and of the seconds of an epoch. DMD2, TDM
and TDM-R1 are drawn in two steps, before and after, the others in eight. diffusion-opd is not among them, since it needs a teacher's run.
"""

import argparse
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from flow_factory.reporting.metrics import read_metrics  # noqa: E402 (found beside this file, installed or not)
from flow_factory.reporting.recipes import Band, load_recipe, names  # noqa: E402

ALGORITHMS = (
    "nft", "awm", "dgpo", "crd", "dpo", "sft", "grpo", "grpo-guard", "flash-grpo", "dppo", "gardo", "draft", "tdm", "tdm-r1", "dmd2",
)  # fmt: skip
STRICT = "eval/reward_strict_mean"
Records = list[dict[str, Any]]


def config_of(algorithm: str) -> str:
    return "examples/quickstart.yaml" if algorithm == "nft" else f"examples/quickstart/{algorithm}.yaml"


def epochs_of(algorithm: str, most: int) -> int:
    """TDM-R1 and DRaFT get worse after the epochs of their configs."""
    config = yaml.safe_load((ROOT / config_of(algorithm)).read_text())
    return min(most, config["train"]["max_epochs"])


def run(algorithm: str, seed: int, args: argparse.Namespace) -> Records:
    """The metrics of one run; of an earlier one with the same name, if it is complete."""
    folder = args.save_dir / f"{algorithm}_{seed}"
    metrics = folder / "metrics.jsonl"
    if not (folder / "summary.md").exists():
        command = [sys.executable, "-m", "flow_factory", config_of(algorithm), f"train.seed={seed}"]
        epochs = epochs_of(algorithm, args.epochs)
        command += [
            f"train.max_epochs={epochs}",
            f"eval.eval_freq={min(5, epochs)}",
            f"run_name={folder.name}",
            f"log.save_dir={args.save_dir}",
        ]
        threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // args.jobs))}
        log = args.save_dir / f"{folder.name}.log"
        args.save_dir.mkdir(parents=True, exist_ok=True)
        with log.open("w") as out:
            subprocess.run(command, cwd=ROOT, check=True, stdout=out, stderr=subprocess.STDOUT, env=os.environ | threads)
    return read_metrics(metrics)


def curve(records: Records) -> tuple[list[int], list[float]]:
    """(epochs, strict accuracies)."""
    return [r["step"] for r in records if STRICT in r], [r[STRICT] for r in records if STRICT in r]


def table(runs: dict[str, list[Records]]) -> str:
    lines = ["| algorithm | strict before | after, each seed | gain | its standard error | s an epoch |", "|---|---|---|---|---|---|"]
    for algorithm, seeds in runs.items():
        strict = [curve(records)[1] for records in seeds]
        gains = [values[-1] - values[0] for values in strict]
        error = f"{statistics.stdev(gains) / len(gains) ** 0.5:.3f}" if len(gains) > 1 else "-"
        seconds = statistics.median(r["time/epoch_s"] for records in seeds for r in records if "time/epoch_s" in r)
        after = ", ".join(f"{values[-1]:.3f}" for values in strict)
        lines.append(f"| `{algorithm}` | {strict[0][0]:.3f} | {after} | {statistics.mean(gains):+.3f} | {error} | {seconds:.1f} |")
    return "\n".join(lines)


def draw(runs: dict[str, list[Records]], out: Path) -> None:
    """A panel for each algorithm: its mean over seeds as a line, the seeds' range as a band, the other algorithms' means in grey."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    means = {algorithm: curves_of(seeds) for algorithm, seeds in runs.items()}
    columns = min(5, len(runs))
    rows = -(-len(runs) // columns)
    figure = Figure(figsize=(2.4 * columns, 1.9 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, (algorithm, (epochs, values)) in zip(panels.flat, means.items(), strict=False):
        for other_epochs, others in means.values():
            axes.plot(other_epochs, [statistics.mean(v) for v in others], color="0.85", linewidth=0.8)
        axes.fill_between(epochs, [min(v) for v in values], [max(v) for v in values], color="tab:blue", alpha=0.2, linewidth=0)
        axes.plot(epochs, [statistics.mean(v) for v in values], color="tab:blue", marker="o", markersize=3)
        axes.set_title(algorithm, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels.flat[len(runs) :]:
        axes.set_visible(False)
    figure.supxlabel("epoch", fontsize=9)
    figure.supylabel("held-out strict accuracy", fontsize=9)
    figure.savefig(out, dpi=110)


def curves_of(seeds: list[Records]) -> tuple[list[int], list[tuple[float, ...]]]:
    """(epochs, values of the seeds at each)."""
    curves = [curve(records) for records in seeds]
    return curves[0][0], list(zip(*(values for _, values in curves), strict=True))


def gains() -> dict[str, Band]:
    """Strict accuracy before and after, of each recipe that has it: of eight steps, then of two; the highest first."""
    known = {
        name: recipe.ours.rewards["strict"] for name in names() if (recipe := load_recipe(name)).ours and "strict" in recipe.ours.rewards
    }
    return dict(sorted(known.items(), key=lambda one: (-one[1].before, -statistics.mean(one[1].after))))


def gains_table(bands: dict[str, Band]) -> str:
    lines = ["| algorithm | strict before | after, each seed | gain |", "|---|---|---|---|"]
    for name, band in bands.items():
        after = ", ".join(f"{value:.3f}" for value in band.after)
        lines.append(f"| `{name}` | {band.before:.3f} | {after} | {statistics.mean(band.after) - band.before:+.3f} |")
    return "\n".join(lines)


def draw_gains(bands: dict[str, Band], out: Path) -> None:
    """A row for each algorithm: the base model as a bar, each seed as a point."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.5 + 0.34 * len(bands)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for y, band in enumerate(bands.values()):
        axes.plot([band.before, statistics.mean(band.after)], [y, y], color="tab:blue", alpha=0.35, linewidth=4, solid_capstyle="butt")
        axes.plot(
            [band.before],
            [y],
            marker="|",
            markersize=14,
            markeredgewidth=2,
            color="black",
            linestyle="none",
            label="before" if y == 0 else None,
        )
        each = [y] * len(band.after)
        axes.plot(band.after, each, "o", markersize=5, color="tab:blue", alpha=0.8, label="after, each seed" if y == 0 else None)
    axes.set_yticks(range(len(bands)), list(bands))
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("held-out strict accuracy")
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, loc="lower right")
    figure.savefig(out, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=ALGORITHMS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 1, 2])
    parser.add_argument("--epochs", type=int, default=15, help="at most; a config that has fewer keeps them")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, which share the machine's cores")
    parser.add_argument("--save-dir", type=Path, default=ROOT / "save" / "algorithms")
    parser.add_argument("--out", type=Path, default=ROOT / "assets" / "algorithms.png")
    parser.add_argument("--recipes", action="store_true", help="draw what the recipes have, and train nothing")
    args = parser.parse_args()
    if args.recipes:
        draw_gains(gains(), ROOT / "assets" / "algorithms_gains.png")
        print(gains_table(gains()))
        return
    wanted = [(algorithm, seed) for seed in args.seeds for algorithm in args.algorithms]
    with ThreadPoolExecutor(args.jobs) as pool:
        records = dict(zip(wanted, pool.map(lambda one: run(*one, args), wanted), strict=True))
    runs = {algorithm: [records[algorithm, seed] for seed in args.seeds] for algorithm in args.algorithms}
    draw(runs, args.out)
    print(table(runs))


if __name__ == "__main__":
    main()
