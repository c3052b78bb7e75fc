"""The page of a run: what comes from data stays text, nothing is asked of elsewhere, and its pictures have a bound."""

import json
import re
from base64 import b64encode
from hashlib import sha256
from pathlib import Path

import pytest
from PIL import Image

from flow_factory.reporting.page import store
from flow_factory.reporting.page.html import in_script
from flow_factory.reporting.page.selection import select
from flow_factory.reporting.page.series import MOST, charts
from flow_factory.reporting.page.write import FILE, page_of, write_page
from flow_factory.types import Sample
from tests.tiny.pages import BROWSER, EVIL, NAME, Page, browsed, hostile, inert, picture
from tests.tiny.run import tiny
from tests.tiny.videos import clip


def test_what_comes_from_data_is_text_and_nothing_else(tmp_path: Path) -> None:
    text = page_of(hostile(tmp_path / NAME))
    page = Page(text)
    assert inert(page)
    shown = "".join(page.words)
    assert all(shown.count(evil) > 5 for evil in EVIL), "all of it is told"
    assert all(attributes["alt"].partition(": ")[2] in EVIL for attributes in page.of("img"))


def test_the_policy_lets_the_pages_own_scripts_run_alone(tmp_path: Path) -> None:
    page = Page(page_of(hostile(tmp_path / "run")))
    [policy] = [a["content"] for a in page.of("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == rules["connect-src"] == rules["base-uri"] == "'none'" and rules["img-src"] == "data:"
    data, *scripts = page.inside["script"]
    for kind, texts in (("script-src", scripts), ("style-src", page.inside["style"])):
        assert rules[kind].split() == [f"'sha256-{b64encode(sha256(t.encode()).digest()).decode()}'" for t in texts]
    assert [a.get("type") for a in page.of("script")] == ["application/json", *[None] * len(scripts)]
    assert json.loads(data)["charts"]["main"][0]["title"] == f"Reward: {NAME}"


def test_json_in_a_script_is_the_same_data(tmp_path: Path) -> None:
    text = in_script(list(EVIL))
    assert json.loads(text) == list(EVIL) and not re.search("[<>&\u2028]", text)


def test_a_run_leaves_its_page(tmp_path: Path) -> None:
    """Evaluations by prompt, groups best first, what the config changes, and the notes."""
    run = tiny(tmp_path, "train.max_epochs=1", "train.learning_rate=3.0e-3")
    assert FILE in run()
    text = (run.folder / FILE).read_text("utf-8")
    page = Page(text)
    assert page.inside["script"][-1] and len(page.of("article")) == len(run.evaluators[0].rows) == 4
    assert [a["data-label"] for a in page.of("figure") if "data-label" in a] == ["epoch 0", "epoch 1"] * 4
    words = re.sub(r"\s+", " ", " ".join(page.words))
    assert "epoch 1 of 1, finished" in words and "train.learning_rate 0.003 3e-4 for lora" in words and "torch" in words
    groups = store.read(run.folder / "report/epoch_00001.json", store.Epoch).groups
    told = [[sample.advantage for sample in group.samples] for group in groups]
    assert list(map(len, told)) == [4, 4] and all(advantages == sorted(advantages, reverse=True) for advantages in told)
    assert len({advantage for group in told for advantage in group}) > 2


def test_the_pictures_of_a_page_have_a_bound(tmp_path: Path) -> None:
    """The first and the last evaluation stay as long as anything does; what is left out is said."""
    for step in range(0, 50, 5):
        store.begin(tmp_path, store.About(), 50)
        store.keep_evaluation(tmp_path, [Sample(f"row {k}", picture(step), {"r": 1.0}) for k in range(6)], step)
    for step in range(45, 51):
        store.keep_groups(tmp_path, [Sample("row", picture(k), {"r": 1.0}, 0.0, k) for k in range(4)], step)
    every = select(tmp_path)
    assert every.left_out == "" and [len(card.shown) for card in every.cards] == [10] * 6
    assert [epoch.step for epoch in every.epochs] == [50, 49, 48], "those of the last epochs are kept"
    one = len(every.cards[0].shown[0][1].src)
    for room in (6, 30, 45, 60):
        found = select(tmp_path, room * one + room * 8)
        pictures = sum(len(card.shown) for card in found.cards) + sum(len(g.samples) for e in found.epochs for g in e.groups)
        assert 0 < pictures <= room
        assert all((card.shown[0][0], card.shown[-1][0]) == ("epoch 0", "epoch 45") for card in found.cards)
    assert re.fullmatch(r"\d of 10 evaluations, \d+ of 12 groups fit on this page", select(tmp_path, 45 * (one + 8)).left_out)
    assert select(tmp_path, 1).left_out.startswith("1 of 6 test rows, 2 of 10 evaluations")


def test_a_resumed_run_forgets_what_came_after_its_state(tmp_path: Path) -> None:
    (tmp_path / store.FOLDER).mkdir()
    for step in (0, 2, 4):
        store.keep_evaluation(tmp_path, [Sample("a", picture(), {})], step)
    store.keep_groups(tmp_path, [Sample("a", picture(), {}, 0.0, 0)], 4)
    store.begin(tmp_path, store.About(), 2)
    assert [step for _, step in store.evaluations(tmp_path)] == [0, 2] and store.epochs(tmp_path) == []


@pytest.mark.parametrize(
    "text", ["{", '{"step": 0, "samples": [{"prompt": "a"}]}', '{"step": 0, "samples": [{"src": "https://elsewhere"}]}']
)
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    hostile(tmp_path)
    (tmp_path / "report/eval_00002.json").write_text(text)
    with pytest.raises(store.ReportError, match=r"eval_00002\.json"):
        write_page(tmp_path)


def test_a_clip_is_a_row_of_its_frames_and_a_large_picture_a_small_one() -> None:
    assert store.picture(clip(8)).width > 3 * store.picture(clip(8)).height / 2
    assert max(store.picture(picture(size=1024)).width, store.picture(Image.new("RGB", (64, 4096))).height) == store.LONGEST


def test_a_long_run_has_a_bound_of_points_and_its_last_step(tmp_path: Path) -> None:
    found = charts({"step": k, "train/grad_norm": float(k), "other/x": None if k % 2 else 1.5} for k in range(10_000))
    [line] = found["main"][0]["lines"]
    assert len(line["x"]) == len(line["y"]) == MOST and line["x"][-1] == 9999
    assert line["y"] == sorted(line["y"]) and found["others"][0]["title"] == "other/x"


@pytest.mark.exhaustive
@pytest.mark.skipif(BROWSER is None, reason="needs chromium or google-chrome")
def test_a_browser_draws_the_page_and_runs_nothing_of_the_data(tmp_path: Path) -> None:
    write_page(hostile(tmp_path / "run"))
    page = browsed((tmp_path / "run" / FILE).as_uri(), tmp_path / "profile")
    assert len(page.of("canvas")) == 1 and sum(a.get("class") == "compare" for a in page.of("div")) == len(EVIL)
    assert "broken" not in "".join(page.inside["script"][1:])
