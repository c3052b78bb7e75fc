"""Writes dataset/prompts/{train,test}.txt: text-to-image prompts put together from parts, no two alike.

python tools/make_prompts.py
"""

import random
from pathlib import Path

SUBJECTS = (
    "an old lighthouse", "a fox asleep on a stone wall", "a street musician with an accordion", "two children flying a kite",
    "a steam train", "a bowl of ripe cherries", "a librarian on a tall ladder", "a sailing boat with red sails",
    "an astronaut repairing a bicycle", "a tortoise", "a glass teapot", "a potter at the wheel", "a market stall full of spices",
    "a paper crane", "a black horse at a fence", "a robot gardener", "a violin beside an open window", "a hot-air balloon",
    "three penguins in scarves", "a baker pulling bread from the oven", "a snowy owl", "a wooden bridge", "a chess game in a park",
    "a cactus in a blue pot", "a fisherman mending his net", "a cathedral built of ice",
)  # fmt: skip
PLACES = (
    "in a harbour town at dawn", "under a sky full of stars", "in a narrow alley after rain", "on a windy hill",
    "in a sunlit kitchen", "at the edge of a pine forest", "in a desert of white sand", "beside a mountain lake",
    "on a rooftop at dusk", "in a quiet snowfall", "in the middle of a crowded square", "among fields of lavender",
)  # fmt: skip
STYLES = (
    "", "oil painting", "photograph, shallow depth of field", "watercolour on rough paper", "isometric illustration",
    "charcoal drawing", "film still, soft evening light", "linocut in two colours", "detailed children's book illustration",
)  # fmt: skip
TRAIN, TEST = 512, 64


def main() -> None:
    combinations = [(s, p, t) for s in SUBJECTS for p in PLACES for t in STYLES]
    random.Random(0).shuffle(combinations)
    lines = [", ".join(part for part in (f"{subject} {place}", style) if part) for subject, place, style in combinations[: TRAIN + TEST]]
    folder = Path(__file__).parent.parent / "dataset" / "prompts"
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", lines[:TRAIN]), ("test", lines[TRAIN:])):
        (folder / f"{name}.txt").write_text("".join(line + "\n" for line in part))


if __name__ == "__main__":
    main()
