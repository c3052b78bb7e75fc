"""Strict accuracy of quick-start checkpoints by the stock pipeline, over several noises a held-out caption.

    python benchmarks/judge.py                                       the model as it is shipped
    python benchmarks/judge.py save/RUN/checkpoints/epoch_15 ...     after these LoRAs

Prints the mean over the noises of seeds 0, 1, ...: 256 pairs of caption and noise each, the same for every checkpoint.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import FluxPipeline

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from flow_factory.core.randomness import generator  # noqa: E402 (found beside this file, installed or not)
from flow_factory.rewards.shapes_detector import detect, grade  # noqa: E402

ROWS = [json.loads(line) for line in (ROOT / "dataset" / "shapes" / "test.jsonl").read_text().splitlines()]
CALL = {"height": 64, "width": 64, "num_inference_steps": 8, "max_sequence_length": 10, "output_type": "np"}


def strict(pipe: FluxPipeline, seed: int, batch: int = 64) -> float:
    """Share of the rows that are drawn right, from the noise that an evaluation with `eval.seed: <seed>` gives them."""
    right: list[bool] = []
    for k in range(0, len(ROWS), batch):
        rows = ROWS[k : k + batch]
        noise = [generator(seed, "eval", k + i) for i in range(len(rows))]
        pictures = pipe([r["prompt"] for r in rows], generator=noise, **CALL).images
        found = detect((pictures * 255).round().astype(np.uint8))
        right += [grade(f, r["objects"], r["relation"])[1] for f, r in zip(found, rows, strict=True)]
    return statistics.mean(right)


def judge(lora: Path | None, noises: int) -> float:
    """Mean over the noises."""
    pipe = FluxPipeline.from_pretrained(ROOT / "assets" / "tiny-flux-shapes", torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    if lora is not None:
        pipe.load_lora_weights(lora)
    return statistics.mean(strict(pipe, seed) for seed in range(noises))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("loras", nargs="*", type=Path)
    parser.add_argument("--noises", type=int, default=8)
    args = parser.parse_args()
    for lora in args.loras or [None]:
        print(f"{judge(lora, args.noises):.3f}  {lora or 'as shipped'}", flush=True)


if __name__ == "__main__":
    main()
