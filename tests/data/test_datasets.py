"""The data sets that come along: they load, their files are there, and the scripts in tools/ make them again."""

import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from flow_factory.data.media import check_whole, open_image, open_video
from flow_factory.data.reader import read_rows
from flow_factory.types import Row

ROOT = Path(__file__).parents[2]
DATA = ROOT / "dataset"
SIZES = {
    "edit": (18, 6),
    "edit_multi": (6, 2),
    "i2v": (9, 3),
    "flf2v": (3, 1),
    "v2v": (8, 4),
    "fill": (6, 2),
    "control": (6, 2),
    "prompts": (512, 64),
    "pickscore": (200, 40),
    "ocr": (128, 32),
    "t2is": (64, 16),
    "t2is_neg": (64, 16),
}
DRAWN = ("edit", "edit_multi", "i2v", "flf2v", "v2v")


@pytest.fixture(scope="module")
def tools() -> ModuleType:
    sys.path.insert(0, str(ROOT / "tools"))
    import make_condition_sets
    import make_prompts

    sys.path.remove(str(ROOT / "tools"))
    module = ModuleType("tools")
    module.__dict__.update(drawn=make_condition_sets.make, prompts=make_prompts.make)
    return module


def rows_of(folder: Path) -> list[Row]:
    return [*read_rows(folder, "train"), *read_rows(folder, "test")]


@pytest.mark.parametrize("name", SIZES)
def test_a_data_set_loads_and_no_prompt_is_in_both_splits(name: str) -> None:
    train, test = read_rows(DATA / name, "train"), read_rows(DATA / name, "test")
    assert (len(train), len(test)) == SIZES[name]
    assert len({r.prompt for r in (*train, *test)}) == sum(SIZES[name])
    assert all(r.negative_prompt for r in train) == (name == "t2is_neg")


def test_the_page_tells_how_many_rows_there_are_and_shows_real_ones() -> None:
    page = (DATA / "README.md").read_text()
    for names, train, test in re.findall(r"^\| (`.*`) \| (\d+), (\d+) \|", page, re.MULTILINE):
        for name in re.findall(r"`(\w+)`", names):
            assert tuple(len(read_rows(DATA / name, split)) for split in ("train", "test")) == (int(train), int(test))
    lines = {line for path in DATA.glob("*/*.jsonl") for line in path.read_text().splitlines()}
    shown = re.findall(r"^\{.*\}$", page, re.MULTILINE)
    assert len(shown) == 3 and lines.issuperset(shown)


def test_condition_files_are_there_small_and_of_several_sizes() -> None:
    for name in DRAWN:
        rows = rows_of(DATA / name)
        [check_whole(path, r.source, kind[:-1]) for r in rows for kind in ("images", "videos") for path in getattr(r, kind)]
        used = {path for r in rows for path in (*r.images, *r.videos)}
        assert used == {str(p) for p in (DATA / name).glob("*/*")}, "no file is missing, and none is left over"
        assert sum(Path(p).stat().st_size for p in used) < 600_000
    edits, pairs, stills, ends, clips = (rows_of(DATA / name) for name in DRAWN)
    assert {len(r.images) for r in (*edits, *stills)} == {1} and {len(r.images) for r in (*pairs, *ends)} == {2}
    assert {Path(p).suffix for r in edits for p in r.images} == {".png", ".jpg", ".webp"}
    assert len({open_image(p, r.source).size for r in edits for p in r.images}) > 5
    for r in ends:
        assert len({open_image(p, r.source).size for p in r.images}) == 1, "first and last frame have one size"
    assert all(len(open_video(p, r.source).frames) == 17 for r in clips for p in r.videos)


@pytest.mark.slow
def test_the_drawn_sets_are_made_again_by_their_script(tmp_path: Path, tools: ModuleType) -> None:
    """Lines to the byte, PNG to the pixel; other encoders may differ a little between machines."""
    tools.drawn(tmp_path)
    for name in DRAWN:
        for split in ("train.jsonl", "test.jsonl"):
            assert (tmp_path / name / split).read_bytes() == (DATA / name / split).read_bytes()
        for here, there in zip(rows_of(tmp_path / name), rows_of(DATA / name), strict=True):
            for a, b in zip((*here.images, *here.videos), (*there.images, *there.videos), strict=True):
                same(a, b)


def same(a: str, b: str) -> None:
    if a.endswith(".mp4"):
        pairs = list(zip(open_video(a, "").frames, open_video(b, "").frames, strict=True))
    else:
        pairs = [(open_image(a, ""), open_image(b, ""))]
    for one, other in pairs:
        assert one.size == other.size
        distance = np.abs(np.asarray(one, dtype=float) - np.asarray(other, dtype=float)).mean()
        assert distance == 0 if a.endswith(".png") else distance < 2, a


def test_the_prompts_are_made_again_by_their_script(tmp_path: Path, tools: ModuleType) -> None:
    tools.prompts(tmp_path)
    made = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*.*"))
    assert len(made) == 10
    for path in made:
        assert (tmp_path / path).read_bytes() == (DATA / path).read_bytes()
