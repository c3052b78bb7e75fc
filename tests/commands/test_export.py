"""`ff-export`: what is written is the trained model, to those who read the format."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from flow_factory.checkpoints.checkpoint import newest
from flow_factory.commands.data_cache import size
from flow_factory.commands.export import main
from flow_factory.training.run import Run
from flow_factory.utils.errors import UserError
from tests.tiny.run import checkpoint, read_state, tiny

CALL: dict[str, Any] = {"height": 32, "width": 32, "num_inference_steps": 2, "max_sequence_length": 16, "output_type": "latent"}
LOAD = {
    "diffusers": 'pipe.load_lora_weights("{}")', "peft": 'PeftModel.from_pretrained(pipe.transformer, "{}")',
    "comfyui": "put it into ComfyUI's models/loras, and take it in the node LoraLoaderModelOnly",
    "kohya": "name it to sd-scripts or musubi-tuner, or put it into ComfyUI's models/loras",
}  # fmt: skip
LAYERS = "[attn.to_out.0,attn.add_q_proj,attn.add_k_proj,ff.net.0.proj,norm1.linear,single_transformer_blocks.0.proj_out]"
"""What diffusers' reader of kohya's files knows at any width: it wants FLUX's own in single blocks, and drops the last layer."""


def latents(pipe: Any) -> Tensor:
    """What the pipeline makes of two steps, of weights that stand alike in memory: products depend on that in their last bit."""
    for p in pipe.transformer.parameters():
        p.data = p.data.clone()
    return pipe("a red circle", generator=torch.Generator("cpu").manual_seed(0), **CALL).images


def stock() -> Any:
    return FluxPipeline.from_pretrained(checkpoint(), torch_dtype=torch.float32)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A tiny trained LoRA, and beside it the weights of which it is the average."""
    keys = (
        "log.save_model_only=false",
        "train.learning_rate=3e-2",
        "train.max_epochs=1",
        "log.save_formats=[comfyui]",
        f"model.target_modules={LAYERS}",
    )
    made = tiny(tmp_path_factory.mktemp("run"), *keys)
    made()
    return made


@pytest.mark.slow
@pytest.mark.parametrize("to", ["diffusers", "peft", "comfyui", "kohya"])
def test_the_stock_pipeline_computes_the_same_with_every_format(
    run: Run, tmp_path: Path, to: str, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = stock()
    trained.load_lora_weights(newest(run.folder))
    out = tmp_path / ("lora" if to == "peft" else "lora.safetensors")
    assert main([str(run.folder), "--to", to, "--out", str(out)]) == 0
    said = capsys.readouterr()
    written, load = said.err.splitlines()[-2:]
    assert said.out == f"{out}\n"
    file = out / "adapter_model.safetensors" if to == "peft" else out
    assert (
        written
        == f"note: {out}: {to}, a LoRA of {len(load_file(file))} tensors (F32), {size(file.stat().st_size)}, from {newest(run.folder)}"
    )
    assert load == f"note: load it: {LOAD[to].format(out)}"
    read = stock()
    if to == "diffusers":
        read.load_lora_weights(out)  # as the line says
    elif to == "peft":
        read.transformer = PeftModel.from_pretrained(read.transformer, out).base_model.model
    else:
        read.load_lora_weights(tmp_path, weight_name=out.name)
    assert torch.equal(latents(read), latents(trained))
    assert not torch.equal(latents(read), latents(stock()))
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    if to != "peft":
        with safe_open(out, "pt") as file:
            said = json.loads(file.metadata()["flow_factory"])
        assert said["base_model"] == str(checkpoint()) and said["prompts"][0] == "a red circle"
        assert [value is not None for value in said["evaluation"]["reward_size_mean"]] == [True, True]


def test_the_command_says_the_same_of_a_save_and_refuses_what_does_not_exist(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(run.folder), "--to", "comfyui", "--out", str(tmp_path / "new")]) == 0
    saved = newest(run.folder) / "comfyui" / "run_epoch_1.safetensors"
    written, there = load_file(tmp_path / "new" / saved.name), load_file(saved)
    assert written.keys() == there.keys() and all(torch.equal(tensor, there[name]) for name, tensor in written.items())
    for words, line in (
        (["--to", "peft", "--out", "lora.safetensors"], "--out: peft is a folder with its config; write lora"),
        (["--to", "kohya", "--out", str(saved)], "exists already; name another"),
        (["--to", "comfyui", "--out", "no/where", "--model", "absent"], "absent"),
    ):
        assert main([str(run.folder), *words]) == 2
        assert line in capsys.readouterr().err.splitlines()[-1]
    for scale in ("nan", "inf", "much"):
        with pytest.raises(SystemExit):
            main([str(run.folder), "--to", "comfyui", "--out", "lora", "--scale", scale])
        assert f"argument --scale: '{scale}' is not a strength, such as 0.8" in capsys.readouterr().err
    assert not list(tmp_path.glob(".partial*"))


def test_what_is_described_last_stops_no_card(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> list[str]:
        raise UserError("not known")

    monkeypatch.setattr("flow_factory.commands.written.written_lines", fails)
    monkeypatch.setattr("flow_factory.reporting.model_card.write_card", lambda published: published.folder / "README.md")
    assert main([str(run.folder), "--to", "diffusers", "--out", str(tmp_path / "lora"), "--card"]) == 2
    said = capsys.readouterr()
    assert said.out.splitlines() == [str(tmp_path / "lora"), str(tmp_path / "lora" / "README.md")] and "not known" in said.err


def test_an_empty_path_is_not_the_current_folder(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["save/run", "--to", "peft", "--out", ""])
    assert "argument --out: it is empty; write the path of what is made" in capsys.readouterr().err


@pytest.mark.exhaustive
def test_a_merged_model_computes_what_the_lora_computes(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = stock()
    trained.load_lora_weights(newest(run.folder))
    trained.transformer.set_adapters(trained.transformer.active_adapters(), 0.5)
    assert main([str(run.folder), "--to", "merged", "--out", str(tmp_path / "model"), "--scale", "0.5"]) == 0
    assert capsys.readouterr().err.endswith(f'load it: DiffusionPipeline.from_pretrained("{tmp_path / "model"}")\n')
    assert main([str(run.folder), "--to", "merged", "--out", str(tmp_path / "model.safetensors"), "--scale", "0.5"]) == 0
    line = f'FluxTransformer2DModel.from_single_file("{tmp_path / "model.safetensors"}", config="{checkpoint()}", subfolder="transformer")'
    assert capsys.readouterr().err.endswith(f"load it: {line}\n")
    whole = FluxPipeline.from_pretrained(tmp_path / "model", torch_dtype=torch.float32)
    torch.testing.assert_close(latents(whole), latents(trained), rtol=1e-4, atol=1e-5)
    single = FluxTransformer2DModel.from_single_file(str(tmp_path / "model.safetensors"), config=str(checkpoint()), subfolder="transformer")
    assert all(torch.equal(t, whole.transformer.state_dict()[name]) for name, t in single.state_dict().items())


@pytest.mark.exhaustive
def test_the_last_weights_are_those_of_the_training_state_and_have_the_asked_dtype_and_strength(run: Run, tmp_path: Path) -> None:
    words = [str(run.folder), "--to", "diffusers", "--weights", "last", "--dtype", "bf16", "--scale", "0.8", "--out"]
    assert main([*words, str(tmp_path / "lora")]) == 0
    with safe_open(tmp_path / "lora" / "pytorch_lora_weights.safetensors", "pt") as file:
        for name, tensor in read_state(newest(run.folder)).items():
            if name.startswith("weights/policy/"):
                key = name.removeprefix("weights/policy/").replace(".default.", ".")
                assert torch.equal(file.get_tensor(key), (tensor * (0.8 if ".lora_B." in key else 1)).bfloat16())


@pytest.mark.exhaustive
def test_full_weights_are_a_transformer_or_a_pipeline_and_no_lora(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = tiny(tmp_path, "model.finetune_type=full", "model.target_modules=all", "train.max_epochs=1", "train.ema_decay=0")
    made()
    trained = FluxTransformer2DModel.from_pretrained(newest(made.folder) / "transformer").state_dict()
    for to in ("diffusers", "merged"):
        assert main([str(made.folder), "--to", to, "--out", str(tmp_path / to)]) == 0
        read = FluxTransformer2DModel.from_pretrained(tmp_path / to / "transformer").state_dict()
        assert all(torch.equal(read[name], tensor) for name, tensor in trained.items())
    assert main([str(made.folder), "--to", "kohya", "--out", str(tmp_path / "kohya")]) == 2
    assert "has full weights, and this format is for LoRAs; write merged or diffusers" in capsys.readouterr().err
