"""guidance/new_model.md as a newcomer takes it: its file, a run with it, its proof; and what a run says of a file that is wrong."""

import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from diffusers import ChromaPipeline
from torch import Tensor

from flow_factory.models.base import ModelAdapter
from flow_factory.models.proof import prove
from flow_factory.types import Cond, Row
from flow_factory.utils.errors import UserError
from tests.commands.test_docs import ROOT
from tests.models.breadth import saved as breadth_checkpoint
from tests.tiny.breadth import CASES
from tests.tiny.pipelines import build, saved
from tests.tiny.run import logged, tiny, trained

FILE, TEXTS, PROOF = re.findall(r"^```python\n(.*?)^```", (ROOT / "guidance/new_model.md").read_text(), re.MULTILINE | re.DOTALL)
CALL = {"height": 32, "width": 32, "guidance_scale": 3.0, "max_sequence_length": 32}


HEAD, _, _ = FILE.partition("class ")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The current directory, with the page's file in it."""
    (tmp_path / "my_models.py").write_text(FILE)
    return tmp_path


def chroma(written: str = "", instead: str = "") -> Any:
    """The page's class, or what it is with other words in it."""
    module = ModuleType("my_models")
    exec(FILE.replace(written, instead) if written else FILE, module.__dict__)
    return module.Chroma


@torch.no_grad()
def refused(family: type[ModelAdapter], call: Mapping[str, Any] = CALL, n: int = 2) -> str:
    """What a run with this adapter would end with."""
    adapter = family(build("chroma"))
    cond = adapter.encode(Row(0, "a red cube", "blurry"), call)
    adapter.drop_encoders()
    with pytest.raises(UserError) as error:
        prove(adapter, cond, call, n)
    return str(error.value)


@pytest.mark.exhaustive
def test_the_pages_family_with_a_unet_trains_and_goes_on_from_its_lora(folder: Path) -> None:
    """From weights alone, and from its training state, with the bits of a run that never stopped."""
    (folder / "my_models.py").write_text(HEAD + TEXTS)
    case = CASES["dreamlite"]
    model = ["model.model_type=my_models.DreamLite", f"model.model_name_or_path={breadth_checkpoint(case, folder)}"]
    alone = ["train.per_device_batch_size=1", "eval.per_device_batch_size=1", "train.max_sequence_length=32", "train.learning_rate=0.1"]
    keys = [*model, *alone, "model.target_components=[unet]", "train.ema_decay=0", "log.save_freq=1", "log.save_model_only=false"]
    whole = tiny(folder, *keys, "run_name=whole")
    whole()
    assert [line["train/on_policy_error"] for line in logged(folder / "save/whole") if "train/on_policy_error" in line] == [0.0, 0.0]
    epochs = folder / "save/whole/checkpoints"
    on = tiny(folder, *keys, "run_name=again", f"model.resume_path={epochs / 'epoch_1'}", "model.resume_type=state")
    on()
    for key, weight in trained(whole).items():
        assert torch.equal(weight, trained(on)[key]), key
    tiny(folder, *keys, "run_name=more", f"model.resume_path={epochs / 'epoch_2'}", "model.resume_type=lora")()


@pytest.mark.slow
def test_the_pages_file_trains_a_lora_that_the_stock_pipeline_loads(folder: Path) -> None:
    model = ["model.model_type=my_models.Chroma", f"model.model_name_or_path={saved('chroma')}"]
    run = tiny(folder, *model, "train.guidance_scale=3", "train.max_sequence_length=32", "train.ema_decay=0", "train.learning_rate=0.1")
    run()
    lines = [line for line in logged(folder / "save/run") if "train/on_policy_error" in line]
    assert [line["train/on_policy_error"] for line in lines] == [0.0, 0.0]

    pipe = ChromaPipeline.from_pretrained(saved("chroma"))
    pipe.set_progress_bar_config(disable=True)
    before = picture(pipe)
    pipe.load_lora_weights(folder / "save/run/checkpoints/epoch_2")
    assert not torch.equal(picture(pipe), before)


def picture(pipe: ChromaPipeline) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return pipe("a red square", **CALL, num_inference_steps=2, generator=generator, output_type="pt").images


def test_the_pages_proof_says_what_the_page_says(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exec(PROOF.replace("path/to/checkpoint", str(saved("chroma"))), {})
    assert capsys.readouterr().out.split() == re.findall(r"# ([\w.]+)", PROOF) == ["0.0", "True"]


# -- files that are wrong -----------------------------------------------------------------------------------------------------------


def test_guidance_that_depends_on_the_step_is_refused() -> None:
    """A callback that ends it after the first step, as diffusers' own ones do."""

    class Cutoff(chroma()):
        def takes(self, call: Mapping[str, Any]) -> dict[str, Any]:
            return super().takes(call) | {"callback_on_step_end": self.end_of_step}

        @staticmethod
        def end_of_step(pipe: Any, step: int, t: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
            pipe._guidance_scale = 1.0
            return {}

    assert re.search(r"does not compute what the rollout did \(.* off by \S+\); its guidance may depend on the step", refused(Cutoff))


def test_a_velocity_of_chance_is_refused() -> None:
    class Noisy(chroma()):
        def velocity(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            return super().velocity(x, *args, **kwargs) + 0.01 * torch.randn_like(x)

    assert refused(Noisy).endswith("or its result on random numbers")


def test_a_run_with_such_a_file_does_not_begin(folder: Path) -> None:
    noisy = [
        "class Noisy(Chroma):",
        "    def velocity(self, x, *args):",
        "        return super().velocity(x, *args) + 0.01 * randn_like(x)",
    ]
    (folder / "my_models.py").write_text("\n".join([FILE, "from torch import randn_like", *noisy]))
    with pytest.raises(UserError, match="or its result on random numbers"):
        tiny(folder, "model.model_type=my_models.Noisy", f"model.model_name_or_path={saved('chroma')}")


def test_a_velocity_that_is_no_number_is_refused() -> None:
    class Broken(chroma()):
        def embed(self, *args: Any) -> Cond:
            return {k: v * torch.nan for k, v in super().embed(*args).items()}

    assert "it computes NaN" in refused(Broken)


@pytest.mark.parametrize(("written", "instead", "said"), [
    ("prompt_attention_mask", "prompt_mask", r"^ChromaPipeline cannot be trained: .*unexpected keyword argument 'prompt_mask'$"),
    ('"prompt_embeds": embeds', '"prompt_embeds": embeds[0]', r"\(pipeline_chroma\.py:\d+, in \w+\)$"),
    ('("text_encoder",)', '("text_encoder", "vae")', r"has no attribute .*\(pipeline_chroma\.py:\d+, in \w+\)$"),
])  # fmt: skip
def test_a_wrong_line_is_said_with_its_place_and_not_blamed_on_the_batch(written: str, instead: str, said: str) -> None:
    assert re.search(said, refused(chroma(written, instead)))


def test_a_pipeline_that_takes_one_sample_at_a_time_is_told_from_one_that_does_not_run() -> None:
    class Single(chroma()):
        def repeat(self, cond: Cond, n: int) -> Cond:
            if n > 1:
                raise RuntimeError("one at a time")
            return super().repeat(cond, n)

    assert re.search(r"with 2 samples .*: one at a time .*; train.per_device_batch_size: 1, .* may help$", refused(Single))


@pytest.mark.parametrize(("written", "instead", "said"), [
    ('("text_encoder",)', '("text_encoder")', r"Chroma.encoders is a text; write a tuple: \('text_encoder',\)"),
    ('("text_encoder",)', '("text_encoder_2",)', "ChromaPipeline has no 'text_encoder_2'; its parts are .*text_encoder"),
])  # fmt: skip
def test_an_attribute_that_cannot_be_is_refused(written: str, instead: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        chroma(written, instead)(build("chroma"))


def test_prompts_are_as_long_as_the_stock_pipelines_where_nobody_says_how_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ModelAdapter, "text_length", 77)
    assert chroma()(build("chroma")).text_length == 512
