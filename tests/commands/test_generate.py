"""`ff-generate`: pictures of checkpoints and the base beside each other."""

import importlib
import os
import re
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline
from PIL import Image
from safetensors.torch import save_file

from flow_factory.checkpoints.checkpoint import newest
from flow_factory.commands import generating, places
from flow_factory.commands.generate import device_name, labels_of, main, rows_of, seeds
from flow_factory.commands.places import new_folder
from flow_factory.utils.errors import UserError
from tests.tiny.run import checkpoint, tiny, write_run


@pytest.mark.parametrize(("text", "meant"), [("3", [3]), ("0-2", [0, 1, 2]), ("1,5,9-11", [1, 5, 9, 10, 11]), ("2,1-3", [2, 1, 3])])
def test_seeds_are_numbers_and_ranges(text: str, meant: list[int]) -> None:
    assert seeds(text) == meant


def test_a_device_is_a_known_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert [device_name(text) for text in ("auto", "cpu", "cuda:1")] == [None, "cpu", "cuda:1"]
    for name in ("nonsense", "npu"):
        with pytest.raises(SystemExit):
            main(["--base", "--config", "tiny.yaml", "--prompts", "a", "--device", name])
        assert f"{name!r} is no device; write auto, cpu, cuda, cuda:1 or mps" in capsys.readouterr().err


def test_labels_tell_checkpoints_apart() -> None:
    paths = [Path("save/a/checkpoints/epoch_1"), Path("save/b/checkpoints/epoch_1"), Path("lora.safetensors")]
    assert labels_of(paths[:1]) == ["epoch_1"]
    assert labels_of(paths) == ["a_epoch_1", "b_epoch_1", "lora"]
    assert labels_of([paths[0], Path("save/b/checkpoints/epoch_2")]) == ["a_epoch_1", "b_epoch_2"], "of several runs"
    assert labels_of([paths[0], Path("save/a/checkpoints/epoch_2")]) == ["epoch_1", "epoch_2"]


def test_prompts_are_texts_and_files(tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("one\ntwo\n")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "three", "negative_prompt": "blur"}\n')
    rows = rows_of(["zero", "rows.txt", "rows.jsonl"], "ugly")
    assert [(row.id, row.prompt, row.negative_prompt) for row in rows] == [
        (0, "zero", "ugly"), (1, "one", "ugly"), (2, "two", "ugly"), (3, "three", "blur"),
    ]  # fmt: skip
    for wrong, line in (("absent.txt", "no file absent.txt"), (" ", "is empty")):
        with pytest.raises(UserError, match=line):
            rows_of([wrong], None)


@pytest.mark.parametrize(("words", "line"), [
    (["--prompts", "a"], "name a checkpoint, or --base with --config"),
    (["--base", "--prompts", "a"], "--base alone: name the YAML of a run with --config"),
    (["absent", "--prompts", "a"], "absent is not a checkpoint"),
    (["runs", "--prompts", "a"], "runs holds runs; name one (newest first): runs/"),
    (["lora.safetensors", "--prompts", "a"], "lora.safetensors: no config.yaml in its folder"),
    (["--base", "--config", "tiny.yaml", "--prompts", "a", "--set", "num_inference_step=3"], "Did you mean 'num_inference_steps'"),
    (["--base", "--config", "tiny.yaml", "--prompts", "a", "--out", "data"], "--out: data is not an empty folder"),
    (["--base", "--config", "run/tiny.yaml", "--prompts", "a"], "run: start there, or write "),
    (["--base", "--config", "tiny.yaml", "--prompts", "x.txt"], "--prompts: x.txt is a folder; name a file in it"),
    (["--base", "--config", "tiny.yaml", "--prompts", "a 1/2 done.", "data/old.csv"], "--prompts: data/old.csv is not a prompt"),
    (["--base", "--config", "tiny.yaml", "--prompts", "-"], "--prompts: - is not a prompt; write prompts, or a .txt or .jsonl file"),
    (["--base", "--config", "kontext.yaml", "--prompts", "a"], "--prompts: 0 condition images; Flux1Kontext takes 1 (columns image"),
    (["--base", "--config", "tiny.yaml", "--prompts", "a", "--set", "max_rows=4"], "write --max_rows N for the first N prompts"),
    (["--base", "--config", "tiny.yaml", "--prompts", "a", "--device", "xpu:7"], "--device: xpu:7: this machine has "),
])  # fmt: skip
def test_what_cannot_be_drawn_is_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], line: str
) -> None:
    text = write_run(tmp_path).read_text()
    (tmp_path / "run/model").mkdir(parents=True)
    (tmp_path / "x.txt").mkdir()
    (tmp_path / "data/old.csv").touch()
    (tmp_path / "kontext.yaml").write_text(text.replace("model_type: flux1", "model_type: flux1-kontext"))
    (tmp_path / "run/model/model_index.json").touch()
    for name in ("a", "b"):
        (tmp_path / "runs" / name / "checkpoints").mkdir(parents=True)
    (tmp_path / "run/tiny.yaml").write_text(re.sub(r"(model_name_or_path:) \S+", r"\1 model", text))
    save_file({"a.lora_A.weight": torch.ones(1, 1)}, tmp_path / "lora.safetensors")
    monkeypatch.setattr(places, "DEEP", 2)  # nothing above this folder
    assert main(words) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: ") and line in said


@pytest.mark.parametrize(("command", "path", "line"), [
    ("generate", "save/quickstrat", "Did you mean save/quickstart? Runs in save, newest first: b, quickstart, a, group/c and 1 more"),
    ("evaluate", "quickstart", "Did you mean save/quickstart? Runs in save, newest first: b, "),
    ("export", "save/b/checkpoints/epoch_3", "(no such folder or file). Runs in save, newest first: b, "),
    ("export", "save/d/epoch_3", "(no such folder or file). save/d/checkpoints has epoch_20, epoch_10"),
    ("export", "save/d/checkpoints/epoch_3", "(no such folder or file). save/d/checkpoints has epoch_20, epoch_10"),
    ("export", "save/quickstrat/checkpoints/epoch_3", "Did you mean save/quickstart? Runs in save, newest first: b, "),
    ("generate", "save/dd/checkpoints/epoch_20", "Did you mean save/d/checkpoints/epoch_20? Runs"),
    ("export", "save/b", "save/b is a run without a checkpoint; one is written every log.save_freq epochs and at the end"),
    ("generate", "save/group", "save/group holds runs; name one (newest first): save/group/c"),
    ("view", "saves", "there is no such folder; name the log.save_dir of runs. Runs in save, newest first: b, "),
])  # fmt: skip
def test_the_runs_that_are_there_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, path: str, line: str
) -> None:
    for age, name in enumerate(("b", "quickstart", "a", "group/c", "d", ".test-run/e")):
        folder = tmp_path / "save" / name
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "metrics.jsonl").touch()
        os.utime(folder / "metrics.jsonl", (1e9 - age, 1e9 - age))
    for name in ("epoch_10", "epoch_20"):
        (tmp_path / "save/d/checkpoints" / name).mkdir()
    monkeypatch.chdir(tmp_path)
    more = {"generate": ["--prompts", "a"], "export": ["--to", "peft", "--out", "x"]}.get(command, [])
    assert importlib.import_module(f"flow_factory.commands.{command}").main([path, *more]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: ") and line in said


def test_commands_that_start_together_have_a_folder_each(tmp_path: Path) -> None:
    usual = tmp_path / "run" / "generated-a"
    with pytest.raises(UserError, match="stopped"), new_folder(usual) as first, new_folder(usual) as second:
        (second / "a.png").touch()
        raise UserError("stopped")
    assert (first, second) == (usual, tmp_path / "run" / "generated-a-2")
    assert [path.name for path in usual.parent.iterdir()] == ["generated-a-2"], "an empty one does not stay"


def test_a_long_list_is_drawn_as_far_as_wanted_and_its_sheet_stays_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path)
    monkeypatch.setattr(generating, "SHEET", 2)
    words = ["--base", "--config", "tiny.yaml", "--prompts", "a", "b", "c", "d", "--seeds", "0", "--out", "out", "--device", "cpu"]
    assert main([*words, "--max_rows", "3", "--set", "num_inference_steps=1"]) == 0
    said = capsys.readouterr()
    assert "3 to draw: 3 prompts, 1 seed, weights: base" in said.err and "3 drawn: out" in said.out
    assert "shows the first 2 of 3 pairs of prompt and seed" in said.err and len(list(Path("out/base").iterdir())) == 3
    short = Image.open("out/sheet.png").height
    assert main([*words, "--max_rows", "2", "--set", "num_inference_steps=1", "--out", "whole"]) == 0
    assert Image.open("whole/sheet.png").height == short and "shows the first" not in capsys.readouterr().err


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_pictures_are_those_of_the_stock_pipeline(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    full = () if kind == "lora" else ("model.finetune_type=full", "model.target_modules=all")
    run = tiny(tmp_path, "log.save_freq=1", "train.learning_rate=1e-1", "train.ema_decay=0", *full)
    run()
    folder = newest(run.folder)
    words = [str(run.folder), "--base", "--prompts", "a red circle", "mars", "--seeds", "0,5", "--batch", "2", "--set", "height=48"]
    assert main([*words, "--device", "cpu"]) == 0
    out = run.folder / f"generated-{folder.name}"
    assert f"8 drawn: {out}; side by side: {out / 'sheet.png'}" in capsys.readouterr().out
    stock = FluxPipeline.from_pretrained(checkpoint(), torch_dtype=torch.float32)
    given = {"height": 48, "width": 32, "num_inference_steps": 3, "max_sequence_length": 16, "guidance_scale": 3.5}
    pictures = []
    for label in ("base", folder.name):
        if label != "base" and kind == "lora":
            stock.load_lora_weights(folder)
        elif label != "base":
            stock.transformer = type(stock.transformer).from_pretrained(folder / "transformer")
        wanted = stock("mars", generator=torch.Generator("cpu").manual_seed(5), **given).images[0]
        drawn = Image.open(out / label / "0001_mars_seed5.png")
        pictures.append(drawn.tobytes())
        assert drawn.text["prompt"] == "mars" and drawn.text["seed"] == "5" and drawn.text["weights"] == label
        off = torch.tensor(list(wanted.tobytes())).int() - torch.tensor(list(drawn.tobytes())).int()
        assert off.abs().max() <= 1
    assert pictures[0] != pictures[1], "the checkpoint draws other pictures than the base"
    assert Image.open(out / "sheet.png").width > 2 * 32
    assert main([*words, "--device", "cpu", "--seeds", "0"]) == 0, "a second start writes beside the first"
    assert f"4 drawn: {out}-2; " in capsys.readouterr().out and len(list((out / "base").iterdir())) == 4
