"""Modular pipelines: the adapter draws what the stock blocks draw, and no code or part of somebody else is read with a checkpoint."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from flow_factory.config.pipelines import pipeline_path
from flow_factory.config.signature import call_arguments
from flow_factory.data.reader import read_rows
from flow_factory.models.diffusers import Diffusers
from flow_factory.models.loading import load_adapter
from flow_factory.types import Clip
from flow_factory.utils.errors import UserError
from flow_factory.utils.model_index import MODULAR, name_source
from tests.models.breadth import saved
from tests.tiny.breadth import CASES

OTHERS = [(f"modular_{name}", scale) for name in ("qwen_img2img", "anima", "flux3") for scale in (3.0, 1.0)]
OTHERS += [("modular_qwen", 1.0), ("modular_wan", 3.0)]  # without guidance Wan's blocks fail in diffusers 0.42.1 as they read a prompt


def stock(tokenizer: Any, folder: Path, given: dict[str, Any], guidance: float) -> list[Any]:
    """What diffusers draws from a seed, with guidance as its users set it.

    Args:
        tokenizer: some processors do not load without torchvision.
    """
    blocks = diffusers.ModularPipeline.from_pretrained(str(folder)).blocks
    blocks.sub_blocks.pop("prompt_upsampler", None)
    pipe = blocks.init_pipeline(str(folder))
    pipe.load_components(dtype=torch.float32)
    pipe.update_components(guider=diffusers.ClassifierFreeGuidance(guidance_scale=guidance), tokenizer=tokenizer)
    state = pipe(**given, num_inference_steps=4, generator=torch.manual_seed(3), output_type="pil")
    return state.values.get("images") or state.values["videos"]


@pytest.mark.parametrize(
    ("name", "guidance"), [("modular_qwen", 3.0), *(pytest.param(*other, marks=pytest.mark.exhaustive) for other in OTHERS)]
)
def test_an_evaluation_draws_what_the_stock_blocks_draw(name: str, guidance: float, tmp_path: Path) -> None:
    case = CASES[name]
    adapter = load_adapter(saved(case, tmp_path), "diffusers")
    row = read_rows(tmp_path / "data", "train", columns=case.renamed())[0]
    call = {**case.call, "guidance_scale": guidance}
    with torch.no_grad():
        cond = adapter.encode(row, call)
    adapter.drop_encoders()
    ours = adapter.evaluate(cond, call, 4, [torch.manual_seed(3)])
    given = {k: v for k, v in call.items() if k != "guidance_scale"} | dict(adapter.conditions(row, call))
    given |= {"prompt": row.prompt, **({"negative_prompt": row.negative_prompt} if row.negative_prompt else {})}
    drawn = stock(adapter.pipe.tokenizer, tmp_path / "checkpoint", given, guidance)
    assert [list(one.frames) if isinstance(one, Clip) else one for one in ours] == drawn
    if guidance > 1:  # and the scale matters
        others = adapter.evaluate(cond, {**call, "guidance_scale": 1.0}, 4, [torch.manual_seed(3)])
        assert [list(one.frames) if isinstance(one, Clip) else one for one in others] != drawn


def foreign_blocks(index: dict[str, Any], folder: Path) -> None:
    (folder / "modular_config.json").write_text(json.dumps({"auto_map": {"ModularPipelineBlocks": "block.Blocks"}}))
    (folder / "block.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")


def unknown_blocks(index: dict[str, Any], folder: Path) -> None:
    index["_blocks_class_name"] = "StrangersBlocks"


def part_elsewhere(index: dict[str, Any], folder: Path) -> None:
    (folder / "vae").rename(folder / "gone")
    index["vae"][2]["pretrained_model_name_or_path"] = "somebody/vae"


def part_of_a_strange_library(index: dict[str, Any], folder: Path) -> None:
    index["vae"] = ["stranger", "Vae", {"type_hint": ["stranger", "Vae"], "pretrained_model_name_or_path": "x"}]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (foreign_blocks, "blocks of its own .* code of a checkpoint is never run"),
        (unknown_blocks, "blocks of its own .StrangersBlocks.; code of a checkpoint is never run"),
        (part_elsewhere, "has no vae, which modular_model_index.json takes from 'somebody/vae'"),
        (part_of_a_strange_library, "vae is of 'stranger'"),
    ],
)
def test_what_is_not_diffusers_own_or_not_in_the_folder_is_refused(
    change: Callable[[dict[str, Any], Path], None], said: str, tmp_path: Path
) -> None:
    index = {"_class_name": "QwenImageModularPipeline", "_blocks_class_name": "QwenImageAutoBlocks"}
    index["vae"] = ["diffusers", "AutoencoderKLQwenImage", {"pretrained_model_name_or_path": "x"}]  # type: ignore[assignment]
    (tmp_path / "vae").mkdir()
    change(index, tmp_path)
    (tmp_path / MODULAR).write_text(json.dumps(index))
    with pytest.raises(UserError, match=said) as caught:
        load_adapter(str(tmp_path), "diffusers")
    assert "\n" not in str(caught.value) and not (tmp_path / "ran").exists()


def test_an_exported_index_says_that_its_parts_are_where_it_is(tmp_path: Path) -> None:
    sources = {"vae": "/tmp/partial", "controlnet": None}
    index = {name: ["diffusers", "AutoencoderKLQwenImage", {"pretrained_model_name_or_path": at}] for name, at in sources.items()}
    (tmp_path / "vae").mkdir()
    (tmp_path / MODULAR).write_text(json.dumps({"_blocks_class_name": "QwenImageAutoBlocks", **index}))
    name_source(tmp_path, "owner/name")
    said = json.loads((tmp_path / MODULAR).read_text())
    assert {name: said[name][2]["pretrained_model_name_or_path"] for name in sources} == {"vae": "owner/name", "controlnet": None}


def test_a_modular_pipeline_of_the_hub_is_refused_with_how_to_have_it_as_a_folder() -> None:
    with pytest.raises(UserError, match="hf download owner/name --local-dir FOLDER"):
        Diffusers.of("owner/name", "AnimaModularPipeline")


def test_the_arguments_of_a_modular_pipeline_are_the_inputs_of_its_blocks() -> None:
    arguments = call_arguments("flow_factory.models.diffusers:Diffusers", pipeline_path("QwenImageModularPipeline"))
    assert {"prompt", "image", "mask_image", "height", "strength"} <= set(arguments)
    assert arguments["height"].problem("wide") is not None and arguments["height"].problem(32) is None
    assert arguments["strength"].default == 1.0  # texts alone are drawn through the whole schedule
