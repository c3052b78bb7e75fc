"""Writes the data sets whose rows have pictures or videos, drawn by drawn_scenes.py: dataset/edit, edit_multi, i2v, flf2v, v2v,
fill and control.

    python tools/make_condition_sets.py

The same pixels and lines at every run; the bytes of JPEG, WebP and MP4 files are those of the installed encoders.
"""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))
from drawn_scenes import Scene, balloon, boat, car, dots, drawn, fish, flowers, house, mug, snowman, swatches, top_hat  # noqa: E402
from PIL import Image, ImageDraw, ImageFilter, ImageOps  # noqa: E402

from flow_factory.data.media import save_video  # noqa: E402
from flow_factory.types import Clip  # noqa: E402

FRAMES, FPS = 17, 8.0
SUFFIXES = ("png", "jpg", "webp")


class Drawing(NamedTuple):
    """A scene, the picture's (width, height), and what may differ in the scene."""

    scene: Scene
    size: tuple[int, int]
    what: dict[str, Any]


Line = tuple[str, Drawing] | tuple[str, Drawing, Drawing]
"""A prompt and its pictures."""


def of(scene: Scene, width: int, height: int, **what: Any) -> Drawing:
    return Drawing(scene, (width, height), what)


CREAM = "#e8d9b5"
EDITS: list[Line] = [
    ("Paint the front door green.", of(house, 384, 288, wall=CREAM, roof="red", door="blue")),
    ("Turn the scene into night, with light in both windows.", of(house, 448, 320, wall="white", roof="grey", door="red")),
    ("Cover the roof and the ground with snow.", of(house, 512, 320, wall="#d9a48f", roof="brown", door="green")),
    ("Paint the house of the first picture in the colours of the second: the walls as the left strip, the roof as the middle one, the "
     "door as the right one.",
     of(house, 400, 300, wall="white", roof="red", door="brown"), of(swatches, 240, 240, colours=["yellow", "blue", "red"])),
    ("Make the mug red and leave everything else as it is.", of(mug, 320, 320, mug="blue")),
    ("Put a biscuit on the table, to the left of the mug.", of(mug, 448, 320, mug="yellow", wall="#d7e3ea")),
    ("Remove the steam above the mug.", of(mug, 320, 384, mug="turquoise", table="#6f4a33")),
    ("Give the mug of the first picture the pattern of the cloth in the second.",
     of(mug, 384, 320, mug="white", wall="#cfdccb"), of(dots, 256, 192, ground="pink", dot="white")),
    ("Make both sails yellow.", of(boat, 384, 320, hull="brown", sail="red")),
    ("Replace the sun by a full moon and darken the sky and the water.", of(boat, 448, 320, hull="green", sail="white")),
    ("Let two gulls fly to the right of the boat.", of(boat, 512, 288, hull="red", sail="white", x=0.4)),
    ("Let the hot-air balloon of the second picture float in the sky of the first, to the right of the boat.",
     of(boat, 480, 320, hull="brown", sail="orange", x=0.35), of(balloon, 256, 320, stripes=["red", "white"])),
    ("Take the snowman's hat off.", of(snowman, 320, 384, hat="black", scarf="red")),
    ("Change the scarf from green to purple.", of(snowman, 320, 320, hat="brown", scarf="green")),
    ("Make it summer: a green meadow instead of the snow on the ground, and a blue sky.",
     of(snowman, 384, 384, hat="blue", scarf="yellow")),
    ("Put the hat of the second picture on the snowman of the first, in place of its own.",
     of(snowman, 320, 384, hat="brown", scarf="blue"), of(top_hat, 256, 256, hat="purple", band="yellow")),
    ("Make the petals of all three flowers white.", of(flowers, 288, 384, vase="blue", petals="red")),
    ("Remove the flower in the middle and keep the other two.", of(flowers, 320, 384, vase="turquoise", petals="purple")),
    ("Let a butterfly sit on the flower on the right.", of(flowers, 320, 320, vase="white", petals="orange", wall="#c9d6e3")),
    ("Put the flowers of the first picture into the vase of the second.",
     of(flowers, 288, 384, vase="red", petals="pink"), of(flowers, 256, 320, vase="green", wall="#efe6d8", blooming=False)),
    ("Repaint the car in blue.", of(car, 448, 288, body="red")),
    ("Make it autumn: the leaves of all three trees turn orange.", of(car, 512, 320, body="white", x=0.4)),
    ("Strap a brown suitcase to the roof of the car.", of(car, 400, 300, body="green", x=0.55)),
    ("Park the car of the first picture in front of the house of the second.",
     of(car, 384, 256, body="yellow"), of(house, 400, 300, wall="white", roof="blue", door="orange")),
    ("Change the yellow stripes of the balloon to green.", of(balloon, 320, 384, stripes=["red", "yellow"])),
    ("Add a second balloon, smaller and farther away, on the left.", of(balloon, 448, 320, stripes=["blue", "white"], x=0.62)),
    ("Show the same scene at sunset, with a glowing orange sky.", of(balloon, 384, 320, stripes=["purple", "pink"])),
    ("Recolour the stripes of the balloon in the first picture with the two colours of the second.",
     of(balloon, 320, 384, stripes=["grey", "white"]), of(swatches, 240, 160, colours=["turquoise", "orange"])),
    ("Add a second fish of the same kind, behind the first one.", of(fish, 384, 320, body="orange", x=0.7)),
    ("Make the fish blue.", of(fish, 320, 320, body="red")),
    ("Take the water plant out of the bowl.", of(fish, 448, 320, body="yellow", wall="#d3dfe6")),
    ("Set the fish bowl of the first picture down beside the vase of the second, on the same table.",
     of(fish, 384, 320, body="purple"), of(flowers, 400, 320, vase="yellow", petals="blue")),
]  # fmt: skip

STILLS: list[Line] = [
    ("The boat glides to the right over calm water. The camera stands still.", of(boat, 384, 224, hull="brown", sail="red", x=0.3)),
    ("The sailing boat rocks gently on the waves while the moon's light glitters on the water.",
     of(boat, 320, 224, hull="red", sail="white", night=True)),
    ("The boat sails from the left to the right of the picture.",
     of(boat, 384, 224, hull="red", sail="yellow", x=0.25), of(boat, 384, 224, hull="red", sail="yellow", x=0.75)),
    ("The hot-air balloon rises slowly and drifts to the left over the hills.", of(balloon, 384, 256, stripes=["red", "yellow"], x=0.6)),
    ("The balloon turns around its own axis as it hangs in the still air.", of(balloon, 224, 320, stripes=["blue", "white"])),
    ("The balloon climbs from the valley into the sky.",
     of(balloon, 288, 320, stripes=["purple", "orange"], y=0.5), of(balloon, 288, 320, stripes=["purple", "orange"], y=0.27)),
    ("The car drives off to the right, its wheels turning, past trees that stand still.", of(car, 416, 224, body="green", x=0.3)),
    ("The car rolls along the road from the left to the right.",
     of(car, 416, 224, body="red", x=0.25), of(car, 416, 224, body="red", x=0.75)),
    ("The trees sway in the wind while the car waits at the roadside.", of(car, 384, 256, body="white")),
    ("The fish swims to the right, turns and swims back; bubbles rise to the surface.", of(fish, 320, 256, body="orange", x=0.3)),
    ("The fish stays where it is and moves its tail fin.", of(fish, 288, 288, body="red")),
    ("Thin curls of steam rise from the mug as the camera comes slowly closer.", of(mug, 320, 256, mug="turquoise")),
    ("Snow falls in large flakes, and the end of the scarf flutters in the wind.", of(snowman, 256, 320, hat="black", scarf="red")),
    ("The flowers sway in a light breeze, and one petal falls on the table.", of(flowers, 256, 320, vase="blue", petals="pink")),
    ("Dusk falls, and a light goes on behind each window.",
     of(house, 352, 256, wall=CREAM, roof="red", door="blue"), of(house, 352, 256, wall=CREAM, roof="red", door="blue", night=True)),
    ("Smoke begins to rise from behind the roof, and the branches of the tree move.",
     of(house, 352, 256, wall="white", roof="brown", door="green")),
]  # fmt: skip

TO_RIGHT, TO_LEFT, UP = {"x": (0.25, 0.75)}, {"x": (0.75, 0.25)}, {"y": (0.5, 0.27)}
CLIPS: list[tuple[str, Drawing, dict[str, tuple[float, float]]]] = [
    ("A wooden boat with a red sail crosses a stormy sea under dark clouds, oil painting.",
     of(boat, 128, 80, hull="brown", sail="red"), TO_RIGHT),
    ("A paper boat with a white sail drifts across a puddle, macro photograph.", of(boat, 128, 80, hull="white", sail="white"), TO_LEFT),
    ("A pirate ship with black sails glides through the night, hand-drawn animation.",
     of(boat, 128, 80, hull="black", sail="black", night=True), TO_RIGHT),
    ("A vintage sports car drives through an avenue of cherry trees in blossom.", of(car, 128, 80, body="red", leaf="pink"), TO_RIGHT),
    ("A yellow taxi on a road in autumn, watercolour.", of(car, 128, 80, body="yellow", leaf="orange"), TO_RIGHT),
    ("A small clay car rolls past clay trees, stop-motion animation.", of(car, 128, 80, body="blue"), TO_RIGHT),
    ("A hot-air balloon rises over misty hills at sunrise, photograph.", of(balloon, 96, 96, stripes=["red", "yellow"]), UP),
    ("A balloon of patched cloth ascends over knitted hills, felt and wool.", of(balloon, 96, 96, stripes=["green", "white"]), UP),
    ("A balloon climbs into the evening sky, pencil drawing with a little colour.", of(balloon, 96, 96, stripes=["purple", "pink"]), UP),
    ("A goldfish swims through a round bowl in the morning light, photograph.", of(fish, 112, 96, body="orange"), TO_RIGHT),
    ("A glowing fish swims through a bowl in a dark room.", of(fish, 112, 96, body="turquoise", wall="#39405a"), TO_RIGHT),
    ("A mechanical fish of brass swims through a glass bowl.", of(fish, 112, 96, body="brown"), TO_RIGHT),
]  # fmt: skip


HOLES: list[tuple[str, Drawing, tuple[float, float, float, float]]] = [
    ("A wooden chest stands on the table.", of(mug, 320, 320, mug="blue"), (0.3, 0.4, 0.75, 0.8)),
    ("A lighthouse rises from the water.", of(boat, 384, 320, hull="brown", sail="red", x=0.3), (0.55, 0.15, 0.95, 0.75)),
    ("A round window in a red frame.", of(house, 384, 288, wall="white", roof="grey", door="blue"), (0.3, 0.5, 0.55, 0.8)),
    ("A bunch of sunflowers.", of(flowers, 320, 384, vase="blue", petals="red"), (0.15, 0.05, 0.9, 0.55)),
    ("A penguin with a yellow scarf.", of(snowman, 320, 384, hat="black", scarf="red"), (0.2, 0.15, 0.8, 0.9)),
    ("A red airship with a golden gondola.", of(balloon, 384, 320, stripes=["blue", "white"]), (0.25, 0.1, 0.8, 0.7)),
    ("An old steam tractor.", of(car, 448, 288, body="green"), (0.15, 0.35, 0.85, 0.85)),
    ("A castle of coral.", of(fish, 320, 320, body="orange", x=0.7), (0.2, 0.4, 0.5, 0.8)),
]  # fmt: skip
"""What the masked part of a picture shows, and its left, top, right and bottom as shares of the sides."""
OUTLINES: list[tuple[str, Drawing]] = [
    ("A stone cottage with a thatched roof, photograph.", of(house, 384, 288, wall="white", roof="red", door="blue")),
    ("A blue china mug on an oak table, photograph.", of(mug, 320, 320, mug="blue")),
    ("A fishing boat with tanned sails on a calm sea, oil painting.", of(boat, 384, 320, hull="brown", sail="white")),
    ("A knitted snowman on a woollen meadow, macro photograph.", of(snowman, 320, 384, hat="black", scarf="red")),
    ("Dried poppies in a green glass vase, watercolour.", of(flowers, 288, 384, vase="green", petals="red")),
    ("A rusty delivery van on a desert road, film still.", of(car, 448, 288, body="white")),
    ("A hot-air balloon of patchwork over lavender fields, photograph.", of(balloon, 320, 384, stripes=["blue", "yellow"])),
    ("A golden carp in a glass bowl on a window sill, photograph.", of(fish, 320, 320, body="orange")),
]  # fmt: skip


def write_holes(folder: Path) -> None:
    """{train,test}.jsonl and images/ of `HOLES`: a picture, and a mask that is white where it is drawn anew."""
    lines: dict[str, list[str]] = {"train": [], "test": []}
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for k, (prompt, drawing, (left, top, right, bottom)) in enumerate(HOLES):
        picture = drawn(drawing.scene, drawing.size, **drawing.what)
        mask = Image.new("L", picture.size)
        w, h = picture.size
        ImageDraw.Draw(mask).rectangle((left * w, top * h, right * w, bottom * h), fill=255)
        columns = {}
        for name, image in (("image", picture), ("mask", mask)):
            columns[name] = f"{k:02d}_{drawing.scene.__name__}_{name}.png"
            image.save(folder / "images" / columns[name])
        lines["test" if is_test(k, 4) else "train"].append(json.dumps({"prompt": prompt, **columns}))
    _write(folder, lines)


def write_outlines(folder: Path) -> None:
    """{train,test}.jsonl and images/ of `OUTLINES`: white edges on black."""
    lines: dict[str, list[str]] = {"train": [], "test": []}
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for k, (prompt, drawing) in enumerate(OUTLINES):
        picture = drawn(drawing.scene, drawing.size, **drawing.what).convert("L").filter(ImageFilter.FIND_EDGES)
        edges = ImageOps.expand(ImageOps.crop(picture, 2), 2).point(lambda value: 255 * (value > 24))
        name = f"{k:02d}_{drawing.scene.__name__}_edges.png"
        edges.save(folder / "images" / name)
        lines["test" if is_test(k, 4) else "train"].append(json.dumps({"prompt": prompt, "edges": name}))
    _write(folder, lines)


def is_test(k: int, every: int) -> bool:
    """Of each `every` rows one, at another place each time, so that every kind of row is in both splits."""
    return k % every == k // every % every


def write_pictures(folder: Path, rows: list[Line]) -> None:
    """{train,test}.jsonl and images/ of rows with one picture or several."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines: dict[str, list[str]] = {"train": [], "test": []}
    for k, (prompt, *drawings) in enumerate(rows):
        names = []
        for letter, drawing in zip("ab", drawings, strict=False):  # "a" alone where there is one picture
            names.append(f"{k:02d}{letter}_{drawing.scene.__name__}.{SUFFIXES[(k + len(names)) % 3]}")
            drawn(drawing.scene, drawing.size, **drawing.what).save(folder / "images" / names[-1], quality=88)
        columns = {"image": names[0]} if len(names) == 1 else {"images": names}
        lines["test" if is_test(k, 4) else "train"].append(json.dumps({"prompt": prompt, **columns}))
    _write(folder, lines)


def write_clips(folder: Path) -> None:
    """{train,test}.jsonl and videos/ of `CLIPS`."""
    (folder / "videos").mkdir(parents=True, exist_ok=True)
    lines: dict[str, list[str]] = {"train": [], "test": []}
    for k, (prompt, drawing, moving) in enumerate(CLIPS):
        name = f"{k:02d}_{drawing.scene.__name__}.mp4"
        places = [{key: a + (b - a) * t / (FRAMES - 1) for key, (a, b) in moving.items()} for t in range(FRAMES)]
        save_video(Clip([drawn(drawing.scene, drawing.size, **{**drawing.what, **p}) for p in places], FPS), folder / "videos" / name)
        lines["test" if is_test(k, 3) else "train"].append(json.dumps({"prompt": prompt, "video": name}))
    _write(folder, lines)


def _write(folder: Path, lines: dict[str, list[str]]) -> None:
    for split, texts in lines.items():
        (folder / f"{split}.jsonl").write_text("".join(text + "\n" for text in texts))


def make(folder: Path) -> None:
    """The data sets in the folder; rows of one picture and of two are apart, since many models take one alone."""
    for one, two, lines in (("edit", "edit_multi", EDITS), ("i2v", "flf2v", STILLS)):
        write_pictures(folder / one, [line for line in lines if len(line) == 2])
        write_pictures(folder / two, [line for line in lines if len(line) == 3])
    write_clips(folder / "v2v")
    write_holes(folder / "fill")
    write_outlines(folder / "control")


if __name__ == "__main__":
    make(Path(__file__).parent.parent / "dataset")
