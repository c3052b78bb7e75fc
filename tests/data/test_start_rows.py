"""A start reads every row once, whatever it asks of it; the rows that it draws it may look at again."""

import hashlib
import json
from pathlib import Path

import pytest
from PIL import Image

from flow_factory.check import check
from flow_factory.config import load_config
from flow_factory.data import inspection, reader
from flow_factory.data.encoding_windows import rows_needed
from flow_factory.data.lines import row_of
from flow_factory.runs.identity import DataFingerprint
from flow_factory.runs.preflight import ready
from flow_factory.types import Row
from flow_factory.utils.errors import RowError, UserError
from tests.tiny.pipelines import saved
from tests.tiny.run import TEST, tiny, write_rows, write_run

MANY = 500


@pytest.mark.parametrize("epochs", ["2", "null"])
def test_a_start_reads_every_row_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epochs: str) -> None:
    write_run(tmp_path)
    write_rows(tmp_path / "data" / "train.jsonl", [{"prompt": f"dog {k}", "objects": [], "relation": None} for k in range(MANY)])
    write_rows(tmp_path / "data" / "test.jsonl", [{"prompt": p, "objects": [], "relation": None} for p in TEST])
    made: list[int] = []
    monkeypatch.setattr(reader, "row_of", lambda k, *rest: (made.append(k), row_of(k, *rest))[1])
    config = load_config(tmp_path / "tiny.yaml", [f"train.max_epochs={epochs}", "rewards.reward_model=shapes"])
    found = ready(config, remote=False)
    assert sorted(made) == sorted([*range(MANY), *range(len(TEST))])
    rows = [[found.rows[k].prompt, None] for k in range(MANY)]
    assert found.identity["may"]["data.dataset_dir"] == hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def test_the_fingerprint_of_rows_is_that_of_a_list_of_them() -> None:
    """Which the states of earlier versions have."""
    texts = ['"quoted" \\ and \n', "ü \U0001f600 \u2028", "\x7f\x01"]
    files = ((), ("/x/ü.png", "y.png"), ())
    rows = [Row(k, t, n, {"c": 1}, i) for k, (t, n, i) in enumerate(zip(texts, (None, "", "no"), files, strict=True))]
    for some in (rows, rows[:1], []):
        fingerprint = DataFingerprint()
        for row in some:
            fingerprint(row)
        lines = [[r.prompt, r.negative_prompt, *(Path(p).name for p in r.images)] for r in some]
        assert fingerprint.hexdigest() == hashlib.sha256(json.dumps(lines).encode()).hexdigest()


def test_of_rows_that_the_run_does_not_draw_the_files_are_there_and_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path)
    images = tmp_path / "data" / "images"
    images.mkdir()
    for k in range(9):
        Image.new("RGB", (64, 64)).save(images / f"{k}.png")
    for split, many in (("train", 9), ("test", 1)):
        write_rows(tmp_path / "data" / f"{split}.jsonl", [{"prompt": "a", "image": f"{k}.png"} for k in range(many)])
    model = [f"model.model_name_or_path={saved('flux1_kontext')}", "model.model_type=flux1-kontext", "train.max_sequence_length=32"]
    config = load_config(tmp_path / "tiny.yaml", model)
    needed = {f"{k}.png" for k in rows_needed(config, (9,))}
    other, (drawn, *_) = next(f"{k}.png" for k in range(9) if f"{k}.png" not in needed), sorted(needed - {"0.png"})
    opened: list[str] = []
    real = inspection.check_media
    monkeypatch.setattr(inspection, "check_media", lambda path, *rest: (opened.append(Path(path).name), real(path, *rest))[1])
    (images / other).write_bytes(b"no picture")
    said = check(config)
    assert set(opened) == needed and f"condition files, all of each decoded: {len(needed)} images, 0 videos" in said
    assert "files of rows that the run does not draw: they exist, and were not opened" in said
    (images / other).unlink()
    with pytest.raises(UserError, match=rf"train.jsonl:{int(other[0]) + 1}: .*{other}: no such image"):
        check(config)
    Image.new("RGB", (64, 64)).save(images / other)
    (images / drawn).write_bytes(b"no picture")
    with pytest.raises(UserError, match=rf"train.jsonl:{int(drawn[0]) + 1}: .*{drawn}: not a readable image"):
        check(config)


@pytest.mark.parametrize("split", ["train", pytest.param("test", marks=pytest.mark.exhaustive)])
def test_a_row_that_is_edited_ends_the_run_with_its_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str) -> None:
    run = tiny(tmp_path, "train.max_epochs=3")
    file = tmp_path / "data" / f"{split}.jsonl"
    real = run.trainer.epoch

    def edited() -> dict[str, float]:
        metrics = real()
        file.write_bytes(file.read_bytes().replace(b"a", b"A"))
        return metrics

    monkeypatch.setattr(run.trainer, "epoch", edited)
    with pytest.raises(RowError, match=rf"^{file}:\d: the line has changed since the run read it; restore it"):
        run()
    done = run.context.progress.epoch
    assert done == 1 and (run.folder / "checkpoints" / f"epoch_{done}" / "state").is_dir()
