"""`ff-reward`: what rewards are, what they do with pictures, and which of a folder's they like."""

import csv
import json
import math
import re
import subprocess
import sys
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from flow_factory.commands.reward import main
from flow_factory.config.modules import lineage
from flow_factory.data.media import save_video
from flow_factory.reporting.pictures import contact_sheet
from flow_factory.rewards import REWARDS, GroupwiseRewardModel, PointwiseRewardModel, RewardModelOutput
from flow_factory.rewards.drawn import ROW, drawn
from flow_factory.rewards.facts import FACTS
from flow_factory.rewards.folder import groups_of, read_folder
from flow_factory.types import Clip
from tests.rewards.reward_set import rewards, scores
from tests.tiny.rewards import brightness
from tests.tiny.run import ROOT

TIMES = count()


class Own(PointwiseRewardModel):
    """How bright a picture is; `how` says what is wrong with it."""

    required_fields = ("image", "video")
    extra_keys = ("how",)

    def __call__(self, prompt: list[str], image: Any = None, video: Any = None) -> RewardModelOutput:
        how = self.config.extra_kwargs.get("how")
        light = torch.tensor([brightness([one] if image else one) for one in image or video])
        wrong = {
            "batch": light - light.mean(),
            "place": light + torch.arange(len(light)),
            "size": light * len(light),
            "time": light + next(TIMES),
            "rounds": light + 1e-4 * torch.rand(len(light)),
            "mute": light * math.nan,
        }
        return RewardModelOutput(wrong.get(how, light), {"error": "it is mute" if how == "mute" else None})


class First(GroupwiseRewardModel):
    """Likes the first of a group."""

    required_fields = ("image",)

    def __call__(self, prompt: list[str], image: list[Any]) -> RewardModelOutput:
        return RewardModelOutput([1.0] + [0.0] * (len(image) - 1))


def config(folder: Path, *entries: str) -> str:
    (folder / "rewards.yaml").write_text("rewards:\n" + "".join(f"  - {{reward_model: {entry}}}\n" for entry in entries))
    return str(folder / "rewards.yaml")


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flow_factory.rewards.examination.LEAST", 0.0)


# -- list -------------------------------------------------------------------------------------------------------------------------------


def test_the_list_has_every_reward_and_says_what_the_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    told = capsys.readouterr().out
    assert list(FACTS) == list(REWARDS) and all(re.search(rf"(?m)^{name} ", told) for name in FACTS)
    rows = [line.split(" | ") for line in (ROOT / "guidance" / "rewards.md").read_text().splitlines() if line.startswith("| `")]
    table = {name: row for row in rows if len(row) == 7 for name in re.findall(r"`(\w+)`", row[0])}
    for name, facts in FACTS.items():
        _, kind, looks, _, licence, scale, runs = (cell.strip(" |").replace("`", "") for cell in table[name])
        assert facts.licence == licence and facts.scale in scale and facts.scores in looks, name
        assert facts.kind == kind and facts.where.startswith({"here": "the training", "judge": "a judge", "server": "a server"}[runs]), name
        bases = [node.name for node in lineage(REWARDS.path(name))]
        assert bases[-2 if bases[-1] == "ABC" else -1] == "BaseRewardModel", name
        assert (facts.kind == "groupwise") == ("GroupwiseRewardModel" in bases), name


def test_one_reward_is_told_whole_and_a_slip_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "pickscore"]) == 0
    assert "PickScore\n  kind: pointwise\n  scores: image, video, prompt\n" in capsys.readouterr().out
    assert main(["list", "PickScor"]) == 2
    assert "Did you mean 'PickScore'?" in capsys.readouterr().err


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from flow_factory.commands.reward import parser; parser().format_help(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)}, check=True)
    assert not {"torch", "fastapi", "uvicorn", "httpx", "numpy", "pydantic"} & set(done.stdout.split())


# -- check ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("how", "text"), [
    ("none", None), ("rounds", None), ("batch", "alone"), ("place", "in another order"), ("size", "alone"), ("time", "when asked again"),
    ("mute", "it has no score for any sample"),
])  # fmt: skip
def test_a_reward_fails_whose_score_depends_on_its_batch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str, text: str | None
) -> None:
    code = main(["check", config(tmp_path, f"'{__name__}:Own', name: own, device: cpu, how: {how}"), "rewards.0.batch_size=4"])
    told = capsys.readouterr().out
    assert told.startswith(f"own: {__name__}:Own, pointwise, on cpu\n  loaded in ") and "samples a second at batch_size 4" in told
    failed = re.findall(r"FAILS: drawn pictures: (.*)", told)
    assert (code, bool(failed)) == ((0, False) if text is None else (1, True))
    assert text is None or any(text in line for line in failed)
    assert ("5 of 5 missing (it is mute)" in told) == (how == "mute")


def test_a_device_that_is_not_there_is_said_before_anything_is_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", config(tmp_path, "saturation, device: 'cuda:99'")]) == 2
    assert capsys.readouterr().err.startswith("error: reward 'saturation': device: cuda:99: this machine has ")


def test_drawn_pictures_are_in_order_and_a_group_is_turned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ladder = scores(rewards("shapes"), list(drawn(video=False).values()), **ROW.columns).tolist()
    assert ladder[0] == 1 and ladder == sorted(ladder, reverse=True)
    entries = ["shapes, batch_size: 2", "jpeg_compressibility, name: size", f"'{__name__}:First', name: first, device: cpu"]
    assert main(["check", config(tmp_path, *entries)]) == 1
    told = capsys.readouterr().out
    assert "weights none; licence -; scale 0 to 1" in told and "as asked 1, " in told
    assert "FAILS: drawn pictures: a score moved by 1 in another order" in told and told.count("FAILS") == 1


def test_the_users_own_folder_is_looked_at_where_drawn_rows_lack_a_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pictures").mkdir()
    for k in (10, 200):
        Image.new("RGB", (8, 8), (k, k, k)).save(tmp_path / "pictures" / f"{k}.png")
    rows = [{"image": f"{k}.png", "prompt": "a", "fault": ""} for k in (200, 10)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    entry = "'tests.commands.test_reward_command:NeedsFault', name: it, device: cpu"
    command = ["check", config(tmp_path, entry), "--images", str(tmp_path / "pictures")]
    assert main(command[:2]) == 1
    assert "needs the column 'fault'" in (said := capsys.readouterr().out) and "score your own by --images and --prompts" in said
    assert main([*command, "--prompts", str(tmp_path / "rows.jsonl")]) == 0
    assert "the folder's: 10 to 200, spread 95; 0 of 2 missing" in capsys.readouterr().out
    assert main(command) == 2 and "needs the column 'fault'" in capsys.readouterr().err


class NeedsFault(Own):
    required_fields = ("image", "fault")

    def __call__(self, prompt: list[str], image: Any = None, fault: Any = None) -> RewardModelOutput:
        return super().__call__(prompt, image)


# -- score ------------------------------------------------------------------------------------------------------------------------------


def folder(path: Path, *lights: int) -> Path:
    path.mkdir()
    for light in lights:
        Image.new("RGB", (24, 16), (light, light, light)).save(path / f"{light}.png")
    return path


def test_a_folder_is_scored_into_tables_and_a_sheet_with_the_best_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown: list[Any] = []
    monkeypatch.setattr("flow_factory.reporting.pictures.contact_sheet", lambda samples: shown.append(samples) or contact_sheet(samples))
    monkeypatch.setattr("flow_factory.commands.reward_score.AT_ONCE", 2)
    images = folder(tmp_path / "in", 30, 100, 20, 7, 250)
    (images / "100.txt").write_text("a grey\nsquare")
    entries = [f"'{__name__}:Own', name: own, device: cpu", f"'{__name__}:First', name: a/b, device: cpu"]
    assert main(["score", config(tmp_path, *entries), "--images", str(images), "--out", str(tmp_path / "out"), "--most", "3"]) == 0
    assert "own: 7 to 250, mean 81.4; 0 of 5 missing; best first in" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "out" / "scores.jsonl").read_text().splitlines()]
    assert [(one["file"], one["own"]) for one in lines] == [(f"{k}.png", k) for k in (100, 20, 250, 30, 7)]
    assert [one["prompt"] for one in lines] == ["a grey square", "", "", "", ""]
    assert [one["a/b"] for one in lines] == [1, 1, 0, 0, 0], "those of one prompt are a group"
    with (tmp_path / "out" / "scores.csv").open() as file:
        assert [row["own"] for row in csv.DictReader(file)] == ["100.0", "20.0", "250.0", "30.0", "7.0"]
    assert [sample.rewards["own"] for sample in shown[0]] == [250, 100, 7], "the best two and the worst"
    assert all((tmp_path / "out" / name).is_file() for name in ("own.png", "a_b.png"))


def test_prompts_come_from_a_file_by_order_or_by_name(tmp_path: Path) -> None:
    images = folder(tmp_path / "in", 1, 2, 3)
    (tmp_path / "p.txt").write_text("one\ntwo\nthree\n")
    assert [(one.file.name, one.row.prompt) for one in read_folder(images, tmp_path / "p.txt")] == [
        ("1.png", "one"), ("2.png", "two"), ("3.png", "three"),
    ]  # fmt: skip
    rows = [{"images": ["3.png", "1.png"], "prompt": "b", "tag": [1]}, {"image": "2.png", "prompt": "a"}]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = read_folder(images, tmp_path / "p.jsonl")
    assert (first.file.name, first.row.images, first.row.columns) == ("3.png", (str(images / "1.png"),), {"tag": [1]})
    assert (second.file.name, second.row.images) == ("2.png", ())
    assert [[one.file.name for one in group] for _, group in groups_of([first, second, first])] == [["2.png"], ["3.png", "3.png"]]


def test_videos_are_scored_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    save_video(Clip([Image.new("RGB", (32, 32), (128, 128, 128))] * 3, 8.0), tmp_path / "in" / "a.mp4")
    for folder in ("scores", "scores-2"):  # nothing is written over what an earlier command has written
        assert main(["score", config(tmp_path, f"'{__name__}:Own', name: own, device: cpu"), "--images", str(tmp_path / "in")]) == 0
        said = capsys.readouterr().out
        assert re.search(r"own: 12[5-9][.\d]* to 1", said) and f"scores: {folder}/scores.jsonl" in said
        assert (tmp_path / folder / "own.png").is_file()


@pytest.mark.parametrize(("files", "prompts", "text"), [
    ([], None, "has no picture"),
    (["a.png", "b.mp4"], None, "has pictures and videos .a.png, b.mp4.; separate them"),
    (["a.png"], ("p.txt", "x\ny\n"), "has 2 prompts, and .* 1 files"),
    (["a.png"], ("p.csv", "x"), "write a .txt, a prompt a line, or a .jsonl"),
    (["a.png"], ("p.jsonl", '{"prompt": "x"}'), "p.jsonl:1: names no file in the column image or video"),
    (["a.png"], ("p.jsonl", '{"prompt": "x", "image": "aa.png"}'), "is none of the files of --images. Did you mean 'a.png'"),
    (["a.png"], ("none.txt", None), "none.txt"),
    (["a.png"], None, "a.png: an empty file"),
])  # fmt: skip
def test_a_folder_that_cannot_be_scored_is_said_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], files: list[str], prompts: tuple[str, str | None] | None, text: str
) -> None:
    (images := tmp_path / "in").mkdir()
    for name in files:
        (images / name).touch()
    if prompts is not None and prompts[1] is not None:
        (tmp_path / prompts[0]).write_text(prompts[1])
    more = [] if prompts is None else ["--prompts", str(tmp_path / prompts[0])]
    assert main(["score", config(tmp_path, f"'{__name__}:Own', device: cpu"), "--images", str(images), *more]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and re.search(text, line), line
