"""The quick start's world: captions, the renderer that draws them, and the split into train and test.

    python tools/shapes_world.py            writes dataset/shapes and dataset/shapes_drawn

The second has the same rows, each with a picture of what its caption asks for: demonstrations.

One to four flat shapes stand on a 4 x 4 board; kinds of caption as in GenEval: single object, count, pair with colour attribution,
relative position. A third of the captions of every kind (but `single`) is held out by a hash of its text: neither pre-training nor
RL sees them.
"""

import hashlib
import itertools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from flow_factory.rewards.shapes_detector import BACKGROUND, PALETTE, RELATIONS, SHAPES, Found, relation_holds

COLORS = ("red", "green", "blue", "yellow")
NUMBERS = {2: "two", 3: "three", 4: "four"}
SIZE = 64
Caption = dict[str, Any]
TRAIN_ROWS = {"single": 12, "count": 75, "pair": 75, "position": 50}
TEST_ROWS = {"count": 96, "pair": 96, "position": 64}
"""Rows by kind: but for the single things, both files have the same mix; a caption comes again where its kind has not so many."""


def captions() -> list[Caption]:
    """Every caption of the world, with the objects that it asks for."""

    def row(kind: str, prompt: str, *objects: tuple[str, str, int], relation: str | None = None) -> Caption:
        wanted = [{"color": c, "shape": s, "count": n} for c, s, n in objects]
        return {"prompt": prompt, "kind": kind, "objects": wanted, "relation": relation}

    things = list(itertools.product(COLORS, SHAPES))
    rows = []
    for c, s in things:
        rows.append(row("single", f"a {c} {s}", (c, s, 1)))
        rows += [row("count", f"{word} {c} {s}s", (c, s, n)) for n, word in NUMBERS.items()]
    for a, b in itertools.permutations(things, 2):
        names = [f"a {c} {s}" for c, s in (a, b)]
        rows.append(row("pair", f"{names[0]} and {names[1]}", (*a, 1), (*b, 1)))
        rows += [row("position", f"{names[0]} {r} {names[1]}", (*a, 1), (*b, 1), relation=r) for r in RELATIONS]
    return rows


def split() -> tuple[list[Caption], list[Caption]]:
    """(train, held out): of every kind but `single`, the third whose texts hash lowest is held out."""
    train, test = [], []
    for _, of_kind in itertools.groupby(sorted(captions(), key=lambda c: c["kind"]), key=lambda c: c["kind"]):
        rows = sorted(of_kind, key=lambda c: hashlib.sha256(c["prompt"].encode()).hexdigest())
        cut = 0 if rows[0]["kind"] == "single" else len(rows) // 3
        test += rows[:cut]
        train += rows[cut:]
    return train, test


def render(caption: Caption, rng: random.Random, noise: float = 0.0, clutter: float = 0.0) -> np.ndarray:
    """A picture (SIZE, SIZE, 3) of the caption, as the web has them.

    Args:
        noise: probability that something in it contradicts the caption.
        clutter: probability that it also shows a thing of which the caption says nothing.
    """
    things = [(o["color"], o["shape"]) for o in caption["objects"] for _ in range(o["count"])]
    relation = caption["relation"]
    if rng.random() < noise:
        things, relation = _contradict(things, relation, rng)
    if rng.random() < clutter:
        things.append((rng.choice(COLORS), rng.choice(SHAPES)))
    cell = SIZE / 4
    while True:
        cells = rng.sample(range(16), len(things))
        if relation is not None and abs(cells[0] % 4 - cells[1] % 4) == abs(cells[0] // 4 - cells[1] // 4):
            continue  # on a diagonal two relations would be equally true
        centres = [((k % 4 + 0.5) * cell + rng.uniform(-0.6, 0.6), (k // 4 + 0.5) * cell + rng.uniform(-0.6, 0.6)) for k in cells]
        radii = [rng.uniform(0.093, 0.103) * SIZE for _ in things]
        if relation is None or relation_holds(*(Found(None, None, *xy) for xy in centres[:2]), relation):
            break
    return _draw(things, centres, radii)


def _contradict(things: list, relation: str | None, rng: random.Random) -> tuple[list, str | None]:
    things = list(things)
    k = rng.randrange(len(things))
    color, shape = things[k]
    change = rng.choice(["color", "shape", "fewer"] + ["relation"] * 2 * (relation is not None))
    if change == "color":
        things[k] = (rng.choice([c for c in COLORS if c != color]), shape)
    elif change == "shape":
        things[k] = (color, rng.choice([s for s in SHAPES if s != shape]))
    elif change == "fewer" and len(things) > 1:
        things.pop(k)
        relation = None
    else:
        relation = None  # anywhere on the board
    return things, relation


def _draw(things: list, centres: list, radii: list, scale: int = 4) -> np.ndarray:
    image = Image.new("RGB", (SIZE * scale, SIZE * scale), BACKGROUND)
    draw = ImageDraw.Draw(image)
    for (color, shape), (x, y), r in zip(things, centres, radii, strict=True):
        x, y, r, fill = x * scale, y * scale, r * scale, PALETTE[color]
        if shape == "circle":
            draw.ellipse([x - r, y - r, x + r, y + r], fill=fill)
        elif shape == "square":
            draw.rectangle([x - 0.92 * r, y - 0.92 * r, x + 0.92 * r, y + 0.92 * r], fill=fill)
        else:
            draw.polygon([(x, y - 1.05 * r), (x - 1.1 * r, y + 0.95 * r), (x + 1.1 * r, y + 0.95 * r)], fill=fill)
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX))


def balanced(rows: list[Caption], counts: dict[str, int], rng: random.Random) -> list[Caption]:
    """`counts[kind]` rows of each kind, repeated in turn where a kind has fewer, shuffled."""
    picked = []
    for kind, count in counts.items():
        of_kind = [r for r in rows if r["kind"] == kind]
        rng.shuffle(of_kind)
        picked += (of_kind * (count // len(of_kind) + 1))[:count]
    rng.shuffle(picked)
    return picked


def with_targets(folder: Path, split: str, rows: list[Caption]) -> list[Caption]:
    """The rows, each with the name of a picture of its caption, which is written into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, shown = random.Random(split), []
    for k, row in enumerate(rows):
        name = f"{split}_{k:03d}.png"
        Image.fromarray(render(row, rng)).quantize(64, dither=Image.Dither.NONE).save(folder / name, optimize=True)
        shown.append(row | {"target": name})
    return shown


def write(file: Path, rows: list[Caption]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def main() -> None:
    data = Path(__file__).parent.parent / "dataset"
    train, held_out = split()
    train, test = balanced(train, TRAIN_ROWS, random.Random(0)), balanced(held_out, TEST_ROWS, random.Random(1))
    for name, rows in (("train", train), ("test", test)):
        write(data / "shapes" / f"{name}.jsonl", rows)
        write(data / "shapes_drawn" / f"{name}.jsonl", with_targets(data / "shapes_drawn" / "images", name, rows))
        print(name, len(rows), {k: sum(r["kind"] == k for r in rows) for k in TRAIN_ROWS})


if __name__ == "__main__":
    main()
