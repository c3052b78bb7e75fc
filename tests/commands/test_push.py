"""`ff-export --card` and `--push`, and `log.push_to_hub`: the card is the run's, the upload is the folder, and no token is printed."""

import ast
import json
import subprocess
import sys
from inspect import signature
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from flow_factory.checkpoints.checkpoint import newest
from flow_factory.commands.export import main
from flow_factory.config import load_config
from flow_factory.models import MODELS
from flow_factory.models.parts import import_pipeline
from flow_factory.reporting.model_card import Published, model_card
from flow_factory.runs.provenance import prompts_of, provenance
from tests.tiny.push_hub import push_hub
from tests.tiny.run import ROOT, environment, tiny, write_run
from tests.tiny.two_datasets import DATASETS, write_two

TOKEN = "hf_" + "s" * 34


def is_call_of(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name


def test_a_card_names_base_rewards_and_how_to_load(tmp_path: Path) -> None:
    base = "black-forest-labs/FLUX.1-dev"
    config = load_config(write_run(tmp_path), [f"model.model_name_or_path={base}", "model.lora_rank=8"])
    (tmp_path / "pytorch_lora_weights.safetensors").touch()
    card = ModelCard(model_card(Published(config, tmp_path, None, "epoch_2", "me/shapes", ["a `b`\n# c```"])))
    assert card.data.base_model == base and card.data.base_model_relation == "adapter" and card.data.pipeline_tag == "text-to-image"
    assert {"lora", "grpo", "flow-factory"} <= set(card.data.tags)
    text = card.text
    assert f'from_pretrained("{base}"' in text and 'pipe.load_lora_weights("me/shapes")' in text and "| size " in text
    assert "- `a 'b' # c" in text and "\nprompt = 'a `b` # c'\n" in text, "no text of a prompt is Markdown"
    asked = {"prompt", "height", "width", "num_inference_steps", "guidance_scale", "max_sequence_length"}
    [call] = [node for node in ast.walk(ast.parse(text.partition("```python")[2].partition("```")[0])) if is_call_of(node, "pipe")]
    assert {word.arg for word in call.keywords} == asked and "torch.float32" in text, "the call of the run's evaluations"


@pytest.mark.parametrize(("name", "more"), [
    ("flux1_kontext", {"image", "max_area"}), ("flux2_i2i", set()), ("qwen_image_edit_plus", {"image", "true_cfg_scale"}),
    ("wan21_i2v", {"image", "num_frames"}), ("hunyuan_image", set()), ("hunyuan_video15_i2v", {"image", "num_frames"}),
])  # fmt: skip
def test_the_call_of_a_card_is_one_that_the_stock_pipeline_takes(tmp_path: Path, name: str, more: set[str]) -> None:
    config = load_config(ROOT / "examples" / "grpo" / "lora" / f"{name}.yaml")
    code = model_card(Published(config, tmp_path, None, "epoch_2", "me/it")).partition("```python")[2].partition("```")[0]
    [call] = [node for node in ast.walk(ast.parse(code)) if is_call_of(node, "pipe")]
    words = {word.arg: ast.unparse(word.value) for word in call.keywords}
    stock = import_pipeline(MODELS[config.model.model_type].pipeline)
    assert call.args == [] and {"prompt", "num_inference_steps", *more} <= words.keys() <= set(signature(stock.__call__).parameters)
    guiders = [part for part in ("guider", "ocr_guider") if part in signature(stock.__init__).parameters]
    assert [f"pipe.{part}.guidance_scale = {config.eval.guidance_scale}" in code for part in ("guider", "ocr_guider")] == [
        part in guiders for part in ("guider", "ocr_guider")
    ]
    assert guiders or {"guidance_scale", "true_cfg_scale"} & words.keys()


def test_a_card_says_that_a_licence_is_not_known(tmp_path: Path) -> None:
    """Of a folder there is no page to see; and what guidance/result.md says of it is so."""
    config = load_config(write_run(tmp_path))
    assert "base model, which is not known here, applies; the terms" in model_card(Published(config, tmp_path, None, "epoch_2", "me/it"))
    config = load_config(write_run(tmp_path), ["model.model_name_or_path=me/base"])
    assert "base model, which is not known here (see its page), applies" in model_card(
        Published(config, tmp_path, None, "epoch_2", "me/it")
    )


def test_a_card_and_a_header_name_each_data_set_that_is_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where `data`, the default of dataset_dir, is another data set
    config = load_config(write_two(tmp_path, [DATASETS[0], {key: value for key, value in DATASETS[1].items() if key != "train"}]))
    said = json.loads(provenance(config, None, "epoch_1")["flow_factory"])
    assert said["data"] == {"words": f"{tmp_path}/words"} and said["prompts"] == prompts_of(config) == ["word 0", "word 1", "word 2"]
    assert "data: `words`." in model_card(Published(config, tmp_path, None, "epoch_2", "me/shapes"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--push", "shapes"], "--push: 'shapes' has no owner; write owner/shapes"),
        (["--push", "me/sh apes"], "is not the name of a repository"),
        (["--push", "me/shapes"], "HF_HUB_OFFLINE is set"),
        (["--private"], "--private: only a repository that --push makes can be private"),
    ],
)
def test_a_push_that_cannot_be_is_refused_before_anything_is_written(
    tmp_path: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path)
    lora = tmp_path / "lora.safetensors"
    save_file({"a.lora_A.weight": torch.ones(1, 1)}, lora)
    assert main([str(lora), "--config", str(run), "--to", "diffusers", "--out", str(tmp_path / "out"), *words]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.exhaustive
def test_a_run_is_pushed_with_its_card_and_the_token_is_not_printed(tmp_path: Path) -> None:
    made = tiny(tmp_path, "train.max_epochs=2")
    made()
    words = ["--to", "diffusers", "--push", "me/shapes", "--private"]
    command = [sys.executable, "-m", "flow_factory.commands.export", str(made.folder), *words]
    with push_hub() as hub:
        open_to = environment(HF_ENDPOINT=hub.address, HF_TOKEN=TOKEN, HF_HUB_DISABLE_XET="1", HF_HUB_OFFLINE="0")
        done = subprocess.run([*command, "--out", str(tmp_path / "out")], env=open_to, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        hub.refuses = True
        refused = subprocess.run([*command, "--out", str(tmp_path / "again")], env=open_to, capture_output=True, text=True, check=False)
    assert f"{hub.address}/me/shapes" in done.stdout and (hub.made[0].get("private") or hub.made[0]["visibility"] == "private")
    assert hub.files == {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir() if file.is_file()}
    assert {"README.md", "config.yaml", "curves.png", "pytorch_lora_weights.safetensors"} <= hub.files.keys()
    mine = load_file(tmp_path / "out" / "pytorch_lora_weights.safetensors")
    assert mine.keys() == load_file(newest(made.folder) / "pytorch_lora_weights.safetensors").keys()
    assert refused.returncode == 2 and "me/shapes was not uploaded" in refused.stderr and (tmp_path / "again" / "README.md").is_file()
    assert hub.tokens == {f"Bearer {TOKEN}"}
    assert not any(TOKEN in text for text in (done.stdout, done.stderr, refused.stdout, refused.stderr))


@pytest.mark.exhaustive
@pytest.mark.parametrize("refuses", [False, True])
def test_a_run_uploads_itself_at_its_end_and_a_refusal_loses_nothing(tmp_path: Path, refuses: bool) -> None:
    """`log.push_to_hub`: what is uploaded is the run's folder `hub`, and the token is in no output and no file."""
    file, run = write_run(tmp_path), tmp_path / "save" / "run"
    words = [str(file), "log.push_to_hub=me/shapes", "train.max_epochs=1", "eval.eval_freq=0"]
    with push_hub() as hub:
        hub.refuses = refuses
        open_to = environment(HF_ENDPOINT=hub.address, HF_TOKEN=TOKEN, HF_HUB_DISABLE_XET="1", HF_HUB_OFFLINE="0")
        done = subprocess.run([sys.executable, "-m", "flow_factory", *words], env=open_to, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    there = {file.name: file.read_bytes() for file in (run / "hub").iterdir() if file.is_file()}
    assert {"README.md", "config.yaml", "pytorch_lora_weights.safetensors"} <= there.keys() and b"me/shapes" in there["README.md"]
    assert hub.files == ({} if refuses else there)
    said = f"upload it later: hf upload me/shapes {run / 'hub'}" if refuses else f"uploaded: {hub.address}/me/shapes"
    assert said in done.stdout + done.stderr
    assert hub.tokens == {f"Bearer {TOKEN}"} and (run / "summary.md").is_file()
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert TOKEN not in done.stdout + done.stderr and not any(TOKEN.encode() in content for content in written)
