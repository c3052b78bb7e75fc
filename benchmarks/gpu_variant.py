"""One variant of a run, measured in a process of its own: `benchmarks/gpu.py` starts it.

python -m benchmarks.gpu_variant draw MODEL FOLDER [--toy]           a random checkpoint, its data set and config
python -m benchmarks.gpu_variant measure FOLDER [section.key=value ...]     an epoch to warm up, then timed ones; a JSON line
"""

import argparse
import json
import platform
import statistics
from pathlib import Path
from typing import Any

import torch

from benchmarks.product import product_rate
from flow_factory.config import RunConfig, load_config
from flow_factory.memory.checkpoint import model_of
from flow_factory.memory.parts import peak
from flow_factory.rewards import PointwiseRewardModel, RewardModelOutput
from flow_factory.train import build
from flow_factory.training.replay_error import measure as measure_floor
from flow_factory.training.throughput import work_of
from flow_factory.training.trainer import Trainer


class Free(PointwiseRewardModel):
    """Scores that cost nothing and tell samples of a group apart."""

    required_fields = ("prompt",)

    def __call__(self, prompt: list[str], **columns: Any) -> RewardModelOutput:
        return RewardModelOutput(rewards=[float(k % 4) for k in range(len(prompt))])


def measure(file: Path, overrides: list[str], epochs: int) -> dict[str, Any]:
    """Medians over `epochs` epochs after one that is not counted, in which whatever is compiled or tuned is."""
    config = load_config(file, ["train.max_epochs=99", *overrides])
    trainer = build(config).trainer
    device, half = trainer.context.accelerator.device, torch.bfloat16 if config.mixed_precision == "bf16" else torch.float32
    product = product_rate(device, half)
    measure_floor(trainer)
    first = trainer.epoch()
    rows = [trainer.epoch() for _ in range(epochs)]
    middle = {k: statistics.median(row[k] for row in rows) for k in rows[0]}
    phases = {k.removeprefix("time/").removesuffix("_s"): v for k, v in middle.items() if k.startswith("time/")}
    reached = {phase: (work.tflop or 0.0) / phases[phase] for phase, work in work_of(trainer.context, trainer.context.conds[0]).items()}
    return {
        "seconds": rounded(phases),
        "first_epoch_s": round(first["time/epoch_s"], 3),
        "images_per_second": round(trainer.context.plan.samples_per_epoch / phases["epoch"], 4),
        "tflops": rounded(reached),
        "share_of_product": rounded({phase: rate / product for phase, rate in reached.items()}),
        "product_tflops": round(product, 2),
        **memory(trainer),
        "estimate_gb": estimate_of(trainer.context.config),
        "recomputed": str(trainer.context.config.train.enable_gradient_checkpointing),
        "on_policy_error": max(row["train/on_policy_error"] for row in (first, *rows)),
        "on_policy_floor": trainer.learner.checks.floor,
        "first_gradient_norm": first["train/grad_norm"],
        **machine(),
    }


def memory(trainer: Trainer) -> dict[str, float | None]:
    """In 10^9 bytes, as the estimate."""
    cuda = trainer.context.accelerator.device.type == "cuda"
    return {
        "peak_allocated_gb": round(trainer.context.meter.memory.allocated_gb(), 2),
        "peak_reserved_gb": round(trainer.context.meter.memory.reserved_gb(), 2) if cuda else None,
    }


def estimate_of(config: RunConfig) -> float | None:
    """GB at the peak, as `--check` says."""
    model = model_of(config)
    return None if model is None else round(peak(model.parts(config)), 2)


def machine() -> dict[str, Any]:
    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }


def rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: float(f"{value:.4g}") for name, value in values.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(dest="what", required=True)
    drawing = what.add_parser("draw")
    drawing.add_argument("model")
    drawing.add_argument("folder", type=Path)
    drawing.add_argument("--toy", action="store_true")
    measuring = what.add_parser("measure")
    measuring.add_argument("folder", type=Path)
    measuring.add_argument("overrides", nargs="*")
    measuring.add_argument("--epochs", type=int, default=1)
    args = parser.parse_args()
    if args.what == "draw":
        from benchmarks.gpu_models import draw

        draw(args.model, args.folder, args.toy)
    else:
        print(json.dumps(measure(args.folder / "config.yaml", args.overrides, args.epochs)), flush=True)


if __name__ == "__main__":
    main()
