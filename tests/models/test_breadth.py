"""Pipelines without an adapter of their own: each replays its rollouts, trains and saves a LoRA that is read back, or is refused with
the reason."""

from pathlib import Path

import pytest

from flow_factory.models.loading import sketch_adapter
from flow_factory.models.proof import prove
from flow_factory.utils.errors import UserError
from tests.models.breadth import ALONE, AT_THE_START, REFUSED, done, read_back, replayed, run_of, saved, small
from tests.tiny.breadth import CASES, Case

KINDS = {
    "one picture as a picture": ("chronoedit", "sana_video_i2v"),
    "noise added at the time asked about": ("sd3_img2img", "flux_control_inpaint"),
    "conditions under other names": ("flux_inpaint", "flux_controlnet"),
    "a draw from the posterior is kept": ("cogview4_control", "framepack"),
    "lists of a tensor a prompt": ("z_image_generic", "ernie_image"),
    "pictures repeated with the prompts": ("sd3_img2img", "lucy_edit"),
    "a state that the pipeline writes over": ("ltx_i2v", "kandinsky6_i2v"),
    "cumulative lengths": ("kandinsky5_t2i", "kandinsky5_i2v"),
    "one prompt with a number": ("longcat_edit", "qwen_edit_plus_generic"),
    "step() with an output object": ("ernie_image", "prx"),
    "pictures under `images`, a list a sample": ("joyimage_edit_plus",),
    "frames as a tensor": ("easyanimate_inpaint",),
    "a cache of keys and values": ("qwen_image21", "flux2_klein_kv"),
    "blocks": ("modular_qwen",),
}
"""What stood in the way of pipelines -> two of each kind, where there are two, which the fast part tries."""
FAST = {name for names in KINDS.values() for name in names}
TRAINED = [name for name in CASES if name not in REFUSED]


def cells(names: list[str], fast: set[str]) -> list[object]:
    return [name if name in fast else pytest.param(name, marks=pytest.mark.exhaustive) for name in names]


def case_of(name: str) -> Case:
    case = CASES[name]
    if (reason := case.missing()) is not None:
        pytest.skip(reason)
    return case


@pytest.mark.parametrize("name", cells(TRAINED, FAST))
def test_the_replay_of_a_pipeline_is_its_rollout(name: str, tmp_path: Path) -> None:
    case = case_of(name)
    with small(case):
        for dtype in ("fp32",) if name in FAST else ("fp32", "bf16"):
            error, _, cond = replayed(case, tmp_path, dtype)
            assert error == 0 and cond["form"]["most"] in (None, 1) and (cond["form"]["most"] is None or name in ALONE)


@pytest.mark.exhaustive
@pytest.mark.parametrize("trainer", ["grpo", "nft"])
@pytest.mark.parametrize("name", TRAINED)
def test_a_run_trains_a_pipeline_and_its_lora_is_read_back(name: str, trainer: str, tmp_path: Path) -> None:
    """A third of the weights at least; some have no gradient, such as those of the text in a last block, or of sound that is not drawn."""
    case = case_of(name)
    with small(case):
        run = done(case, tmp_path, trainer)
        found, written = read_back(run, tmp_path, trainer)
        assert found == written > 0


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", REFUSED)
def test_a_pipeline_that_cannot_be_trained_is_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    case = case_of(name)
    with small(case), pytest.raises(UserError, match=REFUSED[name]) as caught:
        run_of(case, tmp_path, "grpo")()
    assert "\n" not in str(caught.value)
    if name not in AT_THE_START:
        with pytest.raises(UserError, match=REFUSED[name]):
            sketch_adapter(saved(case, tmp_path), "diffusers")


@pytest.mark.exhaustive
def test_several_samples_of_a_pipeline_for_one_are_refused_with_what_to_write(tmp_path: Path) -> None:
    case = CASES["wan_vace"]
    with small(case):
        _, adapter, cond = replayed(case, tmp_path, "fp32")
        with pytest.raises(UserError, match=r"cannot draw 2 samples of a row in one call; write train.per_device_batch_size: 1"):
            prove(adapter, cond, case.call, 2)
