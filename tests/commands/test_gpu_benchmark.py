"""The benchmark of a GPU: what it plans, what it counts, what it draws; and the whole of it at toy size."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from peft import LoraConfig
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu import blamed, run
from benchmarks.gpu_models import PUBLISHED, config_of
from benchmarks.gpu_plan import MODELS, ORDER, SETTINGS, Job, choose, expected, job, jobs, limit
from flow_factory.config import load_config
from flow_factory.memory.flops import operations
from flow_factory.models import MODELS as FAMILIES
from tests.conftest import ROOT
from tests.tiny.pipelines import build

# -- the plan ---------------------------------------------------------------------------------------------------------------------------


def planned(minutes: float, pace: float) -> tuple[list[str], float]:
    """What is measured in this time where everything takes `pace` times what is guessed, and the seconds that it took."""
    waiting, known, spent = jobs(ORDER, {}, 1), {}, 0.0
    done = []
    while (each := choose(waiting, 60 * minutes - spent, known)) is not None:
        waiting.remove(each)
        took = pace * MODELS[each.model] * each.longer
        known[each.model, each.variant] = took
        spent += took
        done.append(f"{each.model}:{each.variant}")
    return done, spent


@pytest.mark.parametrize("pace", [0.1, 0.5, 1.0, 2.0])
def test_what_is_measured_fits_the_time_and_is_the_most_telling(pace: float) -> None:
    """The first one tells how fast the machine is; after it nothing is begun that would not fit."""
    done, spent = planned(10, pace)
    assert spent <= 600 and done[0] == ORDER[0]
    assert sorted(done, key=ORDER.index) == done or len(done) < len(ORDER)
    first_left_out = next((text for text in ORDER if text not in done), None)
    if first_left_out is not None:  # what was done in its place is shorter than what was left at its turn
        before = ORDER.index(first_left_out)
        assert done[:before] == list(ORDER[:before])
    assert len(planned(20, pace)[0]) >= len(done) >= len(planned(5, pace)[0])


def test_time_is_known_from_the_first_variant_that_was_measured() -> None:
    known = {("flux1-dev", "eager"): 2 * MODELS["flux1-dev"]}
    assert expected(job("sd3.5-m:eager"), {}) == MODELS["sd3.5-m"] and expected(job("sd3.5-m:eager"), known) == 2 * MODELS["sd3.5-m"]
    assert expected(job("flux1-dev:compile"), known) == known["flux1-dev", "eager"] * (1 + SETTINGS["compile"][1])
    assert expected(job("flux1-dev:compile"), known | {("flux1-dev", "compile"): 7.0}) == 7.0
    assert expected(job("flux1-dev:eager"), {("flux1-dev", "their"): 1.0}) == MODELS["flux1-dev"]
    assert limit(job("flux1-dev:eager"), 1000, 300, known) == 300 and limit(job("flux1-dev:eager"), 50, 300, known) == 50


def test_another_trainer_runs_in_turn_with_our_first_variant() -> None:
    order = jobs(["flux1-dev:eager", "sd3.5-m:eager"], {"their": "command"}, rounds=2)
    assert [(each.variant, each.model, each.round) for each in order] == [
        (variant, model, k) for k in (0, 1) for variant, model in (("eager", "flux1-dev"), ("their", "flux1-dev"), ("eager", "sd3.5-m"))
    ]


@pytest.mark.parametrize(("text", "said"), [("flux:eager", "no model 'flux'"), ("flux1-dev:compiled", "no setting 'compiled'")])
def test_an_unknown_variant_is_said_with_those_that_there_are(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"{text}: {said}; there are .*(compile|flux1-dev)"):
        job(text)


def test_a_command_that_fails_hangs_or_says_nothing_is_a_line(tmp_path: Path) -> None:
    log = tmp_path / "log"
    shell = ["sh", "-c"]
    assert run([*shell, "echo bars; echo '{\"a\": 1}'"], 60, log) == {"a": 1}
    assert run([*shell, "echo █ >&2; echo 'torch.OutOfMemoryError: no more' >&2; echo later >&2; exit 1"], 60, log) == {
        "error": "torch.OutOfMemoryError: no more"
    }
    assert run([*shell, "exit 3"], 60, log) == {"error": "exit code 3"}
    assert run(["true"], 60, log) == {"error": "it printed no JSON line"}
    assert run([*shell, "sleep 600 & wait"], 1, log) == {"error": "it was ended after 1 s"}


def test_the_line_that_names_the_error_is_found_among_others() -> None:
    assert blamed("a\nerror: train.x: no such key\nnote: more\n") == "error: train.x: no such key"
    assert (
        blamed("Traceback\n  x()\nRuntimeError: CUDA error: an illegal memory access\n")
        == "RuntimeError: CUDA error: an illegal memory access"
    )
    assert blamed("the last words\n") == "the last words" and blamed("") is None


# -- operations -------------------------------------------------------------------------------------------------------------------------


def inputs(name: str, model: Any, image: int, text: int) -> dict[str, Any]:
    """Of one sample: `image` latent tokens in a square or a row, `text` tokens."""
    width = model.config.get("joint_attention_dim") or model.config.get("text_dim")
    side = 2 * int(image**0.5)
    given: dict[str, Any] = {"encoder_hidden_states": torch.randn(1, text, width), "timestep": torch.tensor([0.5])}
    if name == "flux1":
        places = {"img_ids": torch.zeros(image, 3), "txt_ids": torch.zeros(text, 3), "guidance": torch.ones(1)}
        return given | places | {"hidden_states": torch.randn(1, image, 16), "pooled_projections": torch.randn(1, 32)}
    if name == "sd3":
        return given | {"hidden_states": torch.randn(1, 4, side, side), "pooled_projections": torch.randn(1, 64)}
    if name == "qwen_image":
        return given | {"hidden_states": torch.randn(1, image, 16), "img_shapes": [[(1, side // 2, side // 2)]]}
    return given | {"hidden_states": torch.randn(1, 16, 1, side, side)}


@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
@pytest.mark.parametrize("name", [published.tiny for published in PUBLISHED.values()])
def test_operations_are_those_that_torch_counts(name: str, full: bool) -> None:
    """With a mathematical attention: each of its two products has two in the backward.

    No gradient reaches the embeddings before the first LoRA, nor the text behind the last attention: much of two layers, little of 57.
    """
    model, image, text = build(name).transformer, 16, 12
    if not full:
        model.requires_grad_(False)
        targets = FAMILIES[next(p.model_type for p in PUBLISHED.values() if p.tiny == name)].lora_targets
        model.add_adapter(LoraConfig(r=4, target_modules=list(targets)))
    given = {k: v.requires_grad_(not full) if torch.is_tensor(v) and v.ndim > 1 else v for k, v in inputs(name, model, image, text).items()}
    needed = operations(model, image, text)
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            out = model(**given, return_dict=False)[0]
        with FlopCounterMode(display=False) as backward:
            out.sum().backward()
    assert forward.get_total_flops() == pytest.approx(needed.forward, rel=1e-6)
    assert 0.8 < backward.get_total_flops() / needed.backward <= 1


def test_a_forward_of_flux_at_512_px_is_what_one_finds_by_hand() -> None:
    """57 blocks of 12 matrices of 3072 x 3072 for each of 1024 + 512 tokens, and their attention."""
    with init_empty_weights():
        transformer = FAMILIES["flux1"].transformer_class()(guidance_embeds=True)
    tokens, width = 1024 + 512, 3072
    by_hand = 57 * (2 * 12 * width**2 * tokens + 4 * tokens**2 * width)
    assert operations(transformer, 1024, 512).forward == pytest.approx(by_hand, rel=0.01)


# -- checkpoints ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n == "sd3.5-m" else n for n in PUBLISHED])
def test_a_drawn_checkpoint_has_the_published_size_and_a_config_that_loads(name: str, tmp_path: Path) -> None:
    with init_empty_weights():
        pipe = PUBLISHED[name].make()
    family = FAMILIES[PUBLISHED[name].model_type]
    published = {"wan2.1-1.3b": (1.42e9, 0.127e9)}.get(name) or (family.published["transformer"], family.published["vae"])
    assert sum(p.numel() for p in pipe.transformer.parameters()) == pytest.approx(published[0], rel=0.01)
    assert sum(p.numel() for p in pipe.vae.parameters()) == pytest.approx(published[1], rel=0.01)
    (tmp_path / "config.yaml").write_text(config_of(name, tmp_path))
    config = load_config(tmp_path / "config.yaml")
    assert config.scheduler.num_sde_steps == 2 and config.train.num_inference_steps == 10 and config.train.ema_decay == 0


def test_every_variant_is_of_a_model_that_can_be_drawn() -> None:
    assert {job(text).model for text in ORDER} == set(PUBLISHED) == set(MODELS) and len(set(ORDER)) == len(ORDER)
    assert Job("flux1-dev", "compile+auto").overrides == [*SETTINGS["compile"][0], *SETTINGS["auto"][0]]


def test_every_variant_is_a_config_that_loads(tmp_path: Path) -> None:
    for name in PUBLISHED:
        (tmp_path / f"{name}.yaml").write_text(config_of(name, tmp_path))
    for each in map(job, ORDER):
        load_config(tmp_path / f"{each.model}.yaml", each.overrides)


@pytest.mark.exhaustive
def test_the_benchmark_measures_says_what_fails_and_goes_on(tmp_path: Path) -> None:
    """At toy size, on whatever this machine has."""
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--toy", "--only", "flux1-dev:eager", "flux1-dev:float8"]
    other = ["--beside", "their=echo '{\"images_per_second\": 2}'", "--minutes", "60", "--limit", "1800", "--log", str(tmp_path / "log")]
    done = subprocess.run([*command, *other], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["variant"] for line in lines] == ["eager", "their", "float8"]
    eager, their, float8 = lines
    assert eager["on_policy_error"] == 0 and eager["first_gradient_norm"] > 0 and eager["images_per_second"] > 0, eager
    assert {"rollout", "reward", "optimise", "epoch"} <= eager["seconds"].keys()
    assert eager["tflops"].keys() == eager["share_of_product"].keys() == {"rollout", "optimise"}
    assert their["images_per_second"] == 2
    assert torch.cuda.is_available() or "torchao_float8_dynamic" in float8["error"], float8
