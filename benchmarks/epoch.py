"""Where the time of an epoch goes: seconds by phase, the transformer's share, peak memory.

    python benchmarks/epoch.py quickstart      the quick start's epoch
    python benchmarks/epoch.py middle          a random FLUX.1 of about 50 M parameters, 256 px

Prints one JSON object. The share is (forward passes of the transformer + backward passes) / (rollout + optimise), all measured in the
same epochs; the first epoch is left out.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from flow_factory.config import load_config
from flow_factory.train import build
from tests.tiny.flux import flux_pipeline

ROOT = Path(__file__).parent.parent
MIDDLE = {"num_layers": 3, "num_single_layers": 6, "attention_head_dim": 64, "num_attention_heads": 8, "axes_dims_rope": (16, 24, 24)}


class Stopwatch:
    """Seconds spent inside functions."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, function: Callable) -> Callable:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                self.seconds += time.perf_counter() - start

        return timed


def middle_config(folder: Path) -> Path:
    """A data set, a checkpoint of about 50 M parameters and a config of a GRPO epoch on it."""
    pipe = flux_pipeline(transformer=MIDDLE)
    pipe.save_pretrained(folder / "checkpoint")
    (folder / "train.txt").write_text("a cat on a hill\na red circle\n")
    tree = {
        "mixed_precision": "bf16" if torch.cuda.is_available() else "no",
        "data": {"dataset_dir": str(folder), "cache_dir": str(folder / "cache")},
        "model": {
            "model_name_or_path": str(folder / "checkpoint"), "model_type": "flux1", "finetune_type": "lora", "target_modules": "default",
        },
        "scheduler": {"num_sde_steps": 2},
        "train": {
            "resolution": 256, "max_sequence_length": 64, "num_inference_steps": 4, "group_size": 4, "per_device_batch_size": 4,
            "unique_sample_num_per_epoch": 2, "gradient_step_per_epoch": 1, "clip_range": 1.0e-2,
        },
        "rewards": [{"reward_model": "jpeg_compressibility"}],
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    return folder / "config.yaml"


def measure(config: Path, overrides: list[str], epochs: int) -> dict[str, Any]:
    """Medians over `epochs` epochs after one that is not counted."""
    run = build(load_config(config, overrides))
    trainer, inside = run.trainer, Stopwatch()
    bare = next(iter(trainer.context.policy.models.values()))
    bare.forward = inside.around(bare.forward)
    trainer.context.accelerator.backward = inside.around(trainer.context.accelerator.backward)
    trainer.epoch()
    rows = []
    for _ in range(epochs):
        inside.seconds = 0.0
        rows.append(trainer.epoch() | {"inside": inside.seconds})
    middle = {k: statistics.median(r[k] for r in rows) for k in rows[0] if k == "inside" or k.startswith(("time/", "perf/"))}
    both = middle["time/rollout_s"] + middle["time/optimise_s"]
    return {
        "transformer_parameters_million": round(sum(p.numel() for p in bare.parameters()) / 1e6, 2),
        "seconds": {k.removeprefix("time/").removesuffix("_s"): round(v, 3) for k, v in middle.items() if k.startswith("time/")},
        "share_inside_transformer": round(middle["inside"] / both, 3),
        "samples_per_second": round(middle["perf/samples_per_s"], 2),
        "peak_memory_gb": round(middle["perf/peak_memory_gb"], 2),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine(),
        "torch": torch.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("quickstart", "middle"))
    parser.add_argument("--epochs", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = ROOT / "examples" / "quickstart" / "grpo.yaml" if args.what == "quickstart" else middle_config(folder)
        overrides = [f"log.save_dir={folder}/save", "train.max_epochs=9", "log.logging_backend=none"]
        print(json.dumps({"what": args.what} | measure(config, overrides, args.epochs), indent=1))


if __name__ == "__main__":
    main()
