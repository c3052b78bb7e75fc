"""`ff-data show`: what it says of a data set is so, and nothing of a data set breaks it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from flow_factory.commands.data import main
from flow_factory.data.columns import DataError
from flow_factory.data.media import check_media
from flow_factory.data.reader import read_rows
from flow_factory.data.survey import Survey, spread
from flow_factory.data.thumbnails import crossed, thumbnails
from tests.tiny.run import ROOT, environment, write_run
from tests.tiny.tables import PICTURE, parquet, picture


def shown(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> list[str]:
    ended = main(["show", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert ended == code, err
    return out.splitlines()


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["show", *map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and err.count("\n") == 1
    return err


def some_pictures(folder: Path) -> None:
    """Five rows: two good pictures, one of them twice, one that is cut short and one that is not there."""
    (folder / "images").mkdir(parents=True)
    names = ["a.png", "b.jpg", "a.png", "cut.jpg", "gone.png"]
    (folder / "images" / "a.png").write_bytes(picture("green", (40, 30)))
    (folder / "images" / "b.jpg").write_bytes(picture("blue", (90, 200), "JPEG"))
    (folder / "images" / "cut.jpg").write_bytes(picture("blue", (90, 200), "JPEG")[:-100])
    rows = [{"prompt": "a" * (k + 3), "image": name, "n": [k], **({"note": "x"} if k else {})} for k, name in enumerate(names)]
    rows[4]["prompt"] = rows[3]["prompt"]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_rows_columns_lengths_sizes_and_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    some_pictures(tmp_path)
    head, _, *table, _, prompts, images, first, second, wrong, reason = shown(capsys, tmp_path, code=1)
    assert head == f"{tmp_path}, split train: 5 rows"
    assert [line.split()[0] for line in table] == ["column", "prompt", "images", "n", "note"]
    assert table[1].split(maxsplit=3) == ["prompt", "text", "100", '%   "aaa"'] and table[4].split()[1:4] == ["text", "80", "%"]
    assert table[3].endswith("[0]") and "1 file" in table[2]
    assert prompts == "prompts: 3 to 6, median 5 characters; 1 repeat an earlier one"
    assert images == "images: 3; width 40 to 90, median 90; height 30 to 200, median 200"
    assert first.split() == ["90", "x", "200", "2"] and second.split() == ["40", "x", "30", "1"]
    assert wrong == "files that cannot be used: 1" and "train.jsonl:5: " in reason and "no such image" in reason


def test_a_table_is_shown_by_our_names_and_of_many_columns_some(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = pa.array([{"bytes": picture(), "path": None}] * 3, PICTURE)
    columns = {"caption": ["a", "b", "\x1b[31mc"], "pic": pictures, **{f"c{k}": [1, 2, None] for k in range(200)}}
    file = parquet(tmp_path / "x.parquet", columns)
    here = ("--cache-dir", tmp_path / "cache", "--columns", "prompt=caption", "image=pic")
    lines = shown(capsys, file, *here, "--look", 2)
    assert lines[0] == f"{file}, split train: 3 rows" and "... and 162 columns more" in lines and "(inside the data set)" in lines[4]
    assert "images: 1 (of 2 rows); width 32; height 24" in lines and len(lines) < 60
    assert "data.columns.image: no column 'picc'. Did you mean 'pic'?" in refused(capsys, file, *here[:3], "prompt=caption", "image=picc")
    assert "--columns: 'prompt': write ours=theirs" in refused(capsys, file, "--columns", "prompt")
    assert "--columns: no known column is called \"promt\". Did you mean 'prompt'" in refused(capsys, file, "--columns", "promt=x")
    assert "no data set folder" in refused(capsys, tmp_path / "nowhere")


def test_the_tokens_of_a_run_are_counted_as_its_encoder_counts_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    lines = shown(capsys, "examples/quickstart.yaml")
    assert lines[-1] == "tokens: 4 to 9, median 8; assets/tiny-flux-shapes takes 10, which cuts 0 of 212"
    assert shown(capsys, "dataset/shapes", "--model", "assets/tiny-flux-shapes")[-1].startswith("tokens: 4 to 9, median 8; ")
    assert "'assets/none' is neither a folder" in refused(capsys, "dataset/shapes", "--model", "assets/none")


def test_a_run_whose_model_is_not_here_yet_has_its_data_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "tiny.yaml"
    text = write_run(tmp_path).read_text()
    file.write_text(re.sub(r"(model_name_or_path:) .*", r"\1 owner/not-here-yet", text))
    capsys.readouterr()
    assert main(["show", str(file)]) == 0
    out, err = capsys.readouterr()
    assert "6 rows" in out and "characters" in out and "tokens" not in out
    assert err.startswith("note: prompts are measured in characters alone: the hub name ") and err.count("\n") == 1
    assert refused(capsys, "README.yaml").startswith("error: README.yaml")


def test_the_sheet_has_a_tile_a_picture_and_a_cross_where_there_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    some_pictures(tmp_path)
    sheet = tmp_path / "sheet.png"
    assert shown(capsys, tmp_path, "--sheet", sheet, code=1)[-1] == f"contact sheet: {sheet}, 5 pictures"
    whole = np.asarray(Image.open(sheet).convert("RGB"))
    green, blue = ((np.abs(whole.astype(int) - colour).sum(-1) < 20).sum() for colour in ((0, 128, 0), (0, 0, 255)))
    assert green == 2 * 160 * 120 and blue > 90 * 200 * 0.9
    samples = thumbnails(read_rows(tmp_path, "train"), 9)
    assert [s.media == crossed() for s in samples] == [False, False, False, True, True]
    assert samples[3].prompt.startswith("cut.jpg: damaged or truncated") and samples[4].prompt.startswith("gone.png: no such image")
    assert len(thumbnails(read_rows(tmp_path, "train"), 2)) == 2
    assert "--sheet: " in refused(capsys, tmp_path, "--sheet", tmp_path / "no" / "folder.png")
    (tmp_path / "train.jsonl").write_text('{"prompt": "a"}\n')
    assert "--sheet: no row has a picture" in refused(capsys, tmp_path, "--sheet", sheet)


def test_what_is_no_picture_runs_nothing_on_the_sheet(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name, content in (("a.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n"), ("b.svg", b"<svg/>"), ("c.png", b""), ("d.pkl", b"cos\nsystem\n")):
        (tmp_path / "images" / name).write_bytes(content)
    (tmp_path / "train.jsonl").write_text(
        "".join(f'{{"prompt": "a", "image": "{p.name}"}}\n' for p in sorted((tmp_path / "images").iterdir()))
    )
    assert [s.media == crossed() for s in thumbnails(read_rows(tmp_path, "train"), 9)] == [True] * 4


def test_a_survey_keeps_little_of_many_rows(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("".join(f"prompt {k % 900}\n" for k in range(1000)))
    rows = read_rows(tmp_path, "train", checks=[survey := Survey()])
    assert (survey.rows, survey.repeated, len(spread(rows, 300)), spread(rows, 300)[0].id) == (1000, 100, 250, 0)


@pytest.mark.parametrize(("form", "options"), [("GIF", {}), ("PNG", {}), ("WEBP", {}), ("TIFF", {})])
def test_several_pictures_in_one_file_are_refused(tmp_path: Path, form: str, options: dict[str, int]) -> None:
    path = tmp_path / f"x.{form.lower()}"
    Image.new("RGB", (8, 8), "red").save(path, form, save_all=True, append_images=[Image.new("RGB", (8, 8), "blue")], **options)
    with pytest.raises(DataError, match=f"has several frames .{form}.; an image must have one"):
        check_media(path, "here", "image")


@pytest.mark.slow
def test_the_command_shows_without_torch(tmp_path: Path) -> None:
    some_pictures(tmp_path)
    code = f"import sys; from flow_factory.commands.data import main; main(['show', {str(tmp_path)!r}]); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False" and done.stderr == ""
