"""Lines of the public schema_version 2, and pairs that stand inside a table: the same rows as ours."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from flow_factory.check import check
from flow_factory.config import load_config
from flow_factory.data.columns import DataError
from flow_factory.data.reader import read_rows
from flow_factory.utils.errors import UserError
from tests.data.test_given import OFFLINE, offline, write_pairs
from tests.tiny.run import TRAIN
from tests.tiny.tables import PICTURE, parquet


def image(path: str, **keys: Any) -> dict[str, Any]:
    return {"type": "image", "path": path, **keys}


def line(prompt: str = "a", **keys: Any) -> dict[str, Any]:
    shown = {"type": "preference", "chosen": {"media": [image("images/red.png")]}, "rejected": {"media": [image("images/blue.png")]}}
    return {"schema_version": 2, "input": {"prompt": prompt}, "supervision": shown} | keys


def write(folder: Path, *lines: dict[str, Any]) -> Path:
    (folder / "train.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    return folder


def test_a_line_becomes_a_row_of_ours(tmp_path: Path) -> None:
    media = [image("in/x.png", slot="ref"), {"type": "video", "path": "in/y.mp4", "fps": 24}, image("/abs/z.png", slot="ref")]
    shown = {"type": "demonstration", "target": {"media": [image("out.png")]}}
    preference, demonstration = read_rows(
        write(tmp_path, line(metadata={"source": "x", "n": 1}), line("b", input={"prompt": "b", "media": media}, supervision=shown)),
        "train",
    )
    assert preference.columns == {
        "chosen": f"{tmp_path}/images/red.png", "rejected": f"{tmp_path}/images/blue.png", "source": "x", "n": 1,
    }  # fmt: skip
    assert (preference.prompt, preference.images, preference.shows) == ("a", (), "preference")
    assert demonstration.images == (f"{tmp_path}/in/x.png", "/abs/z.png") and demonstration.videos == (f"{tmp_path}/in/y.mp4",)
    assert (demonstration.columns, demonstration.shows) == ({"target": f"{tmp_path}/out.png"}, "demonstration")


@pytest.mark.parametrize(("keys", "said"), [
    ({"schema_version": 3}, 'schema_version 3; only 2 can be read, or lines such as {"prompt": "a red cube"}'),
    ({"schema_version": True}, "schema_version True; only 2 can be read"),
    ({"extra": 1}, "extra: unknown key of schema_version 2"), ({"input": {"promt": "a"}}, "no input.prompt"),
    ({"input": "a"}, "input must be an object, not a text"), ({"input": {"prompt": " "}}, "'prompt' must be a non-empty text"),
    ({"supervision": None}, "supervision.type must be one of demonstration, preference, not null"),
    ({"supervision": {"type": "preference", "chosen": {"media": [image("a")]}}}, "no supervision.rejected"),
    ({"supervision": {"type": "demonstration", "target": {"media": [image("a")] * 2}}}, "target has 2 media; it must have one image"),
    ({"supervision": {"type": "demonstration", "target": {"media": [{"type": "audio", "path": "a"}]}}}, "type must be one of image, video"),
    ({"supervision": line()["supervision"] | {"chosen": {"media": [{"type": "video", "path": "a"}]}}}, "both sides must be of one kind"),
    ({"input": {"prompt": "a", "media": [image("a", fps=2)]}}, "input.media.fps: unknown key"),
    ({"input": {"prompt": "a", "media": [image("https://x/y")]}}, "is a URL"),
    ({"input": {"prompt": "a", "media": [image("a", slot="last"), image("b", slot="first")]}},
     'input.media: slots "last", "first" tell images apart; here their order does: write them in that of the pipeline\'s arguments'),
    ({"input": {"prompt": "a", "media": [image("a"), image("b", slot="first")]}}, 'slots null, "first" tell images apart'),
    ({"metadata": {"prompt": "b"}}, "'prompt' is a reserved name"),
    ({"metadata": []}, "metadata: must be an object, not a list"),
])  # fmt: skip
def test_what_is_wrong_with_a_line_is_one_line(tmp_path: Path, keys: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError) as error:
        read_rows(write(tmp_path, line(), line(**keys)), "train")
    text = str(error.value)
    assert text.startswith(f"{tmp_path}/train.jsonl:2: ") and said in text and "\n" not in text


def test_a_prompt_alone_is_written_as_ours(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r'no supervision; a line with a prompt alone is written \{"prompt": "a red cube"\}'):
        read_rows(write(tmp_path, {"schema_version": 2, "input": {"prompt": "a"}}), "train")


def test_only_who_learns_from_them_takes_such_lines(tmp_path: Path) -> None:
    write_pairs(tmp_path)
    write(tmp_path / "data", *(line(prompt) for prompt in TRAIN))
    with pytest.raises(
        UserError, match="train.jsonl:1: a preference, and grpo draws its own samples; write lines with a prompt, or offline"
    ):
        check(load_config(tmp_path / "tiny.yaml"))
    write(tmp_path / "data", line(supervision={"type": "demonstration", "target": {"media": [image("images/red.png")]}}))
    with pytest.raises(UserError, match="train.jsonl:1: a demonstration, and dpo learns from preferences; write lines with a prompt"):
        check(load_config(tmp_path / "tiny.yaml", OFFLINE))


@pytest.mark.slow
def test_pairs_are_learnt_from_alike_from_lines_of_either_form_and_from_inside_a_table(tmp_path: Path) -> None:
    write_pairs(tmp_path)
    images = tmp_path / "data" / "images"
    expected = offline(tmp_path).trainer.epoch()
    inside = {side: pa.array([{"bytes": (images / f"{name}.png").read_bytes(), "path": None}] * len(TRAIN), PICTURE)
              for side, name in (("jpg_0", "red"), ("jpg_1", "blue"))}  # fmt: skip
    parquet(tmp_path / "table" / "train.parquet", {"caption": TRAIN, **inside})
    columns = "data.columns={prompt: caption, chosen: jpg_0, rejected: jpg_1}"
    from_table = offline(tmp_path, f"data.dataset_dir={tmp_path}/table", columns).trainer.epoch()
    write(tmp_path / "data", *(line(prompt) for prompt in TRAIN))
    from_lines = offline(tmp_path).trainer.epoch()
    learnt = [{k: v for k, v in m.items() if k.startswith("train/")} for m in (expected, from_table, from_lines)]
    assert learnt[0] == learnt[1] == learnt[2] and learnt[0]["train/grad_norm"] > 0
