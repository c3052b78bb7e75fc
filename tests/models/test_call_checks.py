"""The arguments that a pipeline's `check_inputs` refuses, asked without a checkpoint."""

import logging
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest

from flow_factory.models.call_checks import check_arguments
from flow_factory.utils.errors import UserError

SIZE = {"height": 64, "width": 64}


def pipe_of(name: str) -> Any:
    """The pipeline's check and call, without its parts."""
    cls = getattr(diffusers, name)
    its = {key: getattr(cls, key, ()) for key in ("__call__", "check_inputs", "_callback_tensor_inputs")}
    config = SimpleNamespace(boundary_ratio=None, is_distilled=False)
    return type(name, (), {**its, "config": config, "vae_scale_factor": 8, "resolutions": [(512, 512)]})()


@pytest.mark.parametrize(("name", "wrong", "right"), [
    ("FluxPipeline", {"max_sequence_length": 513}, {"max_sequence_length": 512}),
    ("FluxFillPipeline", {"strength": 1.5}, {"strength": 0.5}), ("FluxFillPipeline", {"max_sequence_length": 513}, {}),
    ("LTX2Pipeline", {"spatio_temporal_guidance_blocks": None}, {"stg_scale": 0.5}),
    ("LTX2ImageToVideoPipeline", {"spatio_temporal_guidance_blocks": None}, {"stg_scale": 0.5}),
    ("WanImageToVideoPipeline", {"guidance_scale_2": 3.0}, {}), ("Flux2KleinPipeline", {}, {"guidance_scale": 4.0}),
    ("Kandinsky5I2IPipeline", {"max_sequence_length": 1025}, {"max_sequence_length": 512}),
    ("Kandinsky5T2IPipeline", {"max_sequence_length": 1025}, {"max_sequence_length": 512}),
    ("HunyuanVideo15ImageToVideoPipeline", {"negative_prompt_embeds": 1}, {"negative_prompt": "grey"}),
])  # fmt: skip
def test_what_a_pipeline_refuses_is_found_without_a_row(name: str, wrong: dict[str, Any], right: dict[str, Any]) -> None:
    pipe = pipe_of(name)
    check_arguments(pipe, SIZE | right)
    if wrong:
        with pytest.raises(UserError, match=f"{next(iter(wrong))} .*: {name} refuses it: "):
            check_arguments(pipe, SIZE | wrong)


class Odd:
    """A check that fails for a reason of its own."""

    def __call__(self, prompt: str = "", scale: float = 1.0) -> None: ...

    def check_inputs(self, prompt: str, scale: float) -> None:
        if scale != 1.0:
            raise KeyError("a row is needed")


def test_only_a_value_error_is_a_refusal() -> None:
    check_arguments(Odd(), SIZE | {"scale": 2.0})


def test_the_questions_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("diffusers")
    logger.addHandler(caplog.handler)
    try:
        check_arguments(pipe_of("Kandinsky5T2IPipeline"), SIZE | {"max_sequence_length": 512})
    finally:
        logger.removeHandler(caplog.handler)
    assert caplog.records == []
