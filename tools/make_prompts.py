"""Writes the data sets of prompts alone, put together from parts, no two alike: dataset/{prompts,pickscore,ocr,t2is,t2is_neg}.

python tools/make_prompts.py
"""

import itertools
import json
import random
from collections.abc import Iterator
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

ANIMALS = ("cat", "corgi", "red panda", "owl", "hedgehog", "otter", "baby elephant", "frog", "raccoon", "polar bear", "koala", "goose")
WEARING = ("a raincoat", "round glasses", "a chef's hat", "a space suit", "a wool scarf", "a tuxedo", "a crown of flowers", "headphones")
PEOPLE = ("young witch", "viking warrior", "jazz singer", "old fisherman", "desert nomad", "ballet dancer", "cyborg detective",
          "forest elf", "samurai", "lighthouse keeper")  # fmt: skip
LOOKS = ("dramatic light", "oil on canvas", "35mm photo", "pastel colours", "comic style", "black and white", "neon light", "art nouveau")
SIGHTS = ("a futuristic city", "a medieval castle on a cliff", "a floating island", "a bamboo forest", "a small town in the alps",
          "an abandoned theme park", "a coral reef", "a train station on mars", "a japanese garden", "a library inside a tree")  # fmt: skip
TIMES = ("at sunset", "in heavy rain", "at night", "in thick fog", "in spring", "after the first snow", "under a double rainbow")
FOODS = ("a stack of pancakes with berries", "ramen with a soft egg", "a slice of chocolate cake", "a bowl of fruit salad",
         "fresh croissants", "a huge burger", "tacos on a wooden board", "strawberry ice cream in a cone")  # fmt: skip
TABLES = ("food photography", "on a marble table", "close-up", "in the window of a cafe", "miniature, tilt-shift", "made of felt")
DESIGNS = ("minimalist logo of {a}", "sticker of {a}, white outline", "low poly {n}", "{n} as a pixel art character",
           "embroidered patch with {a}", "origami {n} on a desk", "stained glass window showing {a}")  # fmt: skip

HEROES = (
    "a girl in a yellow raincoat with a red umbrella", "a small round robot with one green eye", "an orange cat with a white tail tip",
    "an old man with a long grey beard and a blue cap", "a rag doll with blue button eyes", "a brown bear cub in a striped pullover",
    "a boy with curly black hair and a green rucksack", "a white pony with a purple mane", "a wooden puppet in a checked waistcoat",
    "a penguin with a pink bow tie",
)  # fmt: skip
DEEDS = (
    "waking up at sunrise", "eating breakfast at a round table", "walking through a market", "waiting at a bus stop in the rain",
    "reading under a tree", "crossing a stone bridge", "looking out of a train window", "building a sandcastle", "feeding ducks at a pond",
    "dancing at a village fair", "sitting by a campfire", "falling asleep under the stars",
)  # fmt: skip
LAYOUTS = (
    "Four pictures in a two by two grid tell one story about {hero}: at the top left {0}, at the top right {1}, at the bottom left {2}, at "
    "the bottom right {3}. {look}",
    "A strip of three panels side by side with {hero}: first {0}, then {1}, finally {2}. {look}",
    "A character sheet in four equal squares shows {hero} in four situations: {0}; {1}; {2}; {3}. {look}",
)  # fmt: skip
ALIKE = (
    "Face, clothes and colours are the same in every picture; flat children's book style.",
    "The same figure, the same size, the same soft watercolour in all of them.",
    "Every picture has the same figure and the same evening light, as stills of one film.",
    "All of them are drawn with one thick black line and three colours.",
)
FLAWS = ("different faces", "changing clothes", "mixed styles", "text", "watermark", "blurry", "extra panels", "cropped figure",
         "deformed hands", "uneven borders", "low contrast")  # fmt: skip


SIGNS = [
    "a wooden sign beside a forest path that says {text}", "a neon sign in a shop window at night that says {text}",
    "a chalkboard in front of a cafe that says {text}", "a white mug on a desk with {text} printed on it",
    "an old poster on a brick wall with the words {text}", "a birthday cake with {text} written in icing",
    "the cover of a book with the title {text}", "a road sign under a stormy sky that says {text}",
    "a T-shirt on a washing line with the print {text}", "a paper note on a fridge that says {text}",
]  # fmt: skip
TEXTS = [
    "Open", "Fresh Bread", "Slow Down", "Mind the Gap", "Hello Again", "North Pier", "Two for One", "Keep Left", "Good Morning",
    "The Last Train", "Warm Milk", "No Swimming", "Happy Day", "Library", "Room 12", "Wet Paint",
]  # fmt: skip


def scenes() -> Iterator[str]:
    """Of dataset/prompts."""
    for subject, place, style in itertools.product(SUBJECTS, PLACES, STYLES):
        yield ", ".join(part for part in (f"{subject} {place}", style) if part)


def everyday() -> Iterator[str]:
    """Short ones as people type them."""
    for animal, wearing in itertools.product(ANIMALS, WEARING):
        yield f"cute {animal} wearing {wearing}"
    for person, look in itertools.product(PEOPLE, LOOKS):
        yield f"portrait of {_a(person)}, {look}"
    for sight, time in itertools.product(SIGHTS, TIMES):
        yield f"{sight} {time}"
    for food, table in itertools.product(FOODS, TABLES):
        yield f"{food}, {table}"
    for design, animal in itertools.product(DESIGNS, ANIMALS):
        yield design.format(a=_a(animal), n=animal)


def signs() -> Iterator[str]:
    """With a text to be read in double quotes."""
    for place, text in itertools.product(SIGNS, TEXTS):
        yield place.format(text=f'"{text}"')


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def sets(count: int, rng: random.Random) -> list[str]:
    """Long ones about several pictures of one figure in one image."""
    cases = list(itertools.product(LAYOUTS, HEROES, ALIKE))
    rng.shuffle(cases)
    return [layout.format(*rng.sample(DEEDS, 4), hero=hero, look=look) for layout, hero, look in cases[:count]]


def shuffled(prompts: Iterator[str], count: int) -> list[str]:
    lines = list(prompts)
    random.Random(0).shuffle(lines)
    return lines[:count]


def write(folder: Path, lines: list[str], train: int, suffix: str = "txt") -> None:
    """The first `train` lines as the training split, the others as the test split."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", lines[:train]), ("test", lines[train:])):
        (folder / f"{name}.{suffix}").write_text("".join(line + "\n" for line in part))


def make(folder: Path) -> None:
    """All five data sets in the folder."""
    write(folder / "prompts", shuffled(scenes(), 576), 512)
    write(folder / "pickscore", shuffled(everyday(), 240), 200)
    write(folder / "ocr", shuffled(signs(), 160), 128)
    write(folder / "t2is", sets(80, random.Random(1)), 64)
    rng = random.Random(2)
    rows = [{"prompt": prompt, "negative_prompt": ", ".join(rng.sample(FLAWS, 5))} for prompt in sets(80, rng)]
    write(folder / "t2is_neg", [json.dumps(row) for row in rows], 64, "jsonl")


if __name__ == "__main__":
    make(Path(__file__).parent.parent / "dataset")
