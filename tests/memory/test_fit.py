"""`--check --gpu`: whether a run fits cards of any size, and keys that make it fit, each proved by the estimate of the config with them."""

import re
from functools import cache
from types import SimpleNamespace

import pytest

from flow_factory.cli import main
from flow_factory.config import RunConfig, load_config
from flow_factory.config.recompute import AUTO
from flow_factory.memory.auto import resolve_auto
from flow_factory.memory.checkpoint import Model, model_of
from flow_factory.memory.fit import memory_lines
from flow_factory.memory.parts import Part
from flow_factory.memory.rollout import DRAWING, drawn
from flow_factory.memory.room import ROOM
from flow_factory.memory.suggestions import Candidate, proposals, try_keys, with_keys
from flow_factory.models import MODELS
from tests.tiny.run import ROOT, write_run

ALONE = ("num_processes=1", "config_file=null")


@cache
def example(name: str, *keys: str) -> tuple[RunConfig, Model]:
    config = load_config(ROOT / "examples/grpo" / f"{name}.yaml", [*ALONE, *keys])
    model = model_of(config)
    assert model is not None
    return config, model


def said_to_write(lines: list[str]) -> list[str]:
    found = [line.strip().removeprefix("write: ").split() for line in lines if line.strip().startswith("write: ")]
    assert len(found) <= 1
    return found[0] if found else []


@pytest.mark.parametrize(
    ("name", "keys", "card"),
    [
        pytest.param("lora/flux1", (), 24.0, marks=pytest.mark.slow),
        pytest.param(
            "lora/flux1",
            ("train.per_device_batch_size=8", "train.enable_gradient_checkpointing=false", "train.resolution=1024"),
            48.0,
            marks=pytest.mark.slow,
        ),
        pytest.param("full/sd3_5", ("model.master_weight_dtype=fp32",), 24.0, marks=pytest.mark.slow),
        pytest.param("lora/qwen_image", (), 24.0, marks=pytest.mark.slow),
    ],
)
def test_what_it_says_to_write_fits_by_the_estimate(name: str, keys: tuple[str, ...], card: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config, model = example(name, *keys)
    lines, fits = memory_lines(config, card)
    assert not fits and f"does NOT fit a {card:.0f} GB GPU" in "\n".join(lines)
    wanted = said_to_write(lines)
    assert wanted, lines
    better = load_config(ROOT / "examples/grpo" / f"{name}.yaml", [*ALONE, *keys, *wanted])
    assert Candidate(better, model.parts(better)).gb < ROOM * card
    told = [line for line in lines if "fits" in line and wanted[-1] in line]
    gb = float(re.search(r"-> ([\d.]+) GB", told[0])[1])  # type: ignore[index]
    assert gb == pytest.approx(Candidate(better, model.parts(better)).gb, abs=0.06)


@pytest.mark.slow
def test_cheap_keys_come_first_and_none_that_is_set_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config, model = example("lora/flux1", "train.per_device_batch_size=8", "train.enable_gradient_checkpointing=false")
    lines = list(proposals(config, model.parts, 40.0))
    assert "enable_gradient_checkpointing" in "".join(lines) and "quantization" not in "".join(lines)
    config, model = example("lora/flux1", "model.quantization=bnb_4bit")
    said = "\n".join(proposals(config, model.parts, 5.0))
    assert "quantization" not in said and "layerwise" not in said and "finetune_type" not in said and "it remains too large" in said


def test_a_card_that_is_large_enough_has_no_proposals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    lines, fits = memory_lines(example("lora/flux1")[0], 80.0)
    assert fits and "fits a 80 GB GPU" in "\n".join(lines) and not said_to_write(lines) and not any("to fit" in line for line in lines)


@pytest.mark.slow
def test_encoders_that_are_larger_than_the_card_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    lines, fits = memory_lines(example("lora/flux2_t2i", "model.quantization=bnb_4bit")[0], 24.0)
    assert not fits and any("encode them once on a larger GPU" in line for line in lines)


def test_keys_that_do_not_go_with_the_rest_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config, model = example("lora/flux1", "model.quantization=bnb_4bit")
    start = Candidate(config, model.parts(config))
    assert try_keys(start, ("model.offload_blocks=true",), "", model.parts) is None
    assert with_keys(config, ()) == config


@pytest.mark.parametrize(("arguments", "code"), [(["--gpu", "24"], 0), (["--gpu", "0.5GB"], 1), ([], 0)])
def test_the_exit_code_says_whether_it_fits(arguments: list[str], code: int, tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(write_run(tmp_path)), "--check", *arguments]) == code
    assert ("does NOT fit" in capsys.readouterr().out) == bool(code)


@pytest.mark.parametrize(
    "arguments", [["--check", "--gpu", "big"], ["--check", "--gpu", "0"], ["--check", "--gpu", "nan"], ["--gpu", "24"]]
)
def test_a_size_that_is_none_and_a_run_on_cards_that_are_not_here_are_refused(
    arguments: list[str], tmp_path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([str(write_run(tmp_path)), *arguments])
    assert stop.value.code == 2 and "--gpu" in capsys.readouterr().err


# -- decoding ------------------------------------------------------------------------------------------------------------------------


class Known(Model):
    """Ten GB of weights, and what a rollout draws."""

    def parts(self, config: RunConfig) -> list[Part]:
        return [
            Part("weights", 10.0),
            Part(DRAWING, drawn(config, self.family, self.module.config), "rollout"),
            Part("training", 99.0, "training"),
        ]


@pytest.mark.parametrize(
    ("card", "keys", "takes", "said"),
    [
        (32, (), (False, False), 0),
        (18, (), (True, False), 1),
        (15, (), (True, True), 2),
        (12, (), (True, False), 1),  # tiles would not make it fit
        (15, ("model.vae_tiling=false",), (True, False), 1),
        (32, ("model.vae_slicing=true", "model.vae_tiling=true"), (True, True), 0),
        (12, ("model.vae_slicing=false", "model.vae_tiling=false"), (False, False), 0),
        (16, ("train.per_device_batch_size=1", "eval.per_device_batch_size=1"), (False, False), 0),
    ],
)
def test_pictures_are_decoded_one_by_one_or_in_tiles_where_they_have_no_room_otherwise(
    card: float, keys: tuple[str, ...], takes: tuple[bool, bool], said: int
) -> None:
    """Clips of 4.3 GB each, four at a time; in tiles 3.5 GB."""
    four = ("train.per_device_batch_size=4", "eval.per_device_batch_size=4")
    config = load_config(ROOT / "examples/grpo/lora/ltx2_t2av.yaml", [*ALONE, *four, *keys])
    model = Known(MODELS["ltx2_t2av"], {}, SimpleNamespace(config={"num_attention_heads": 1, "attention_head_dim": 64}))
    found, lines = resolve_auto(config, model, card)
    assert (found.model.vae_slicing, found.model.vae_tiling) == takes
    told = [line for line in lines if line.startswith("model.vae_")]
    assert len(told) == said and all(f"auto takes true for a {card} GB GPU" in line for line in told)
    assert resolve_auto(config, None, card)[0].model.vae_tiling is not AUTO
