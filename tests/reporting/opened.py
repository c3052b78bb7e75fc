"""Trackers that are open, and what they are given."""

import json
import math
from pathlib import Path

from PIL import Image

from flow_factory.reporting.trackers import open_trackers
from flow_factory.types import Sample
from tests.tiny.videos import clip

SAMPLES = [Sample("a red cube", Image.new("RGB", (64, 64), "red"), {"shapes": 0.53, "ocr": math.nan})]
CLIPS = [Sample(f"ball {k}", clip(5, (48, 32), seed=k, sound=k == 1), {"motion": 0.5}) for k in range(2)]


def opened(folder: Path, *names: str):
    return open_trackers(names, "project", "run", folder, {"train": {"seed": 1}})


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
