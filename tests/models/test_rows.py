"""Rows: what is kept of them, what is refused, and sizes that a pipeline can make; and the architectures that are really trained."""

import copy
import re
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_flatten, tree_leaves

from flow_factory.config import RunConfig, load_config
from flow_factory.data.cache import ConditionCache
from flow_factory.memory.sizes import shape_of
from flow_factory.models import MODELS
from flow_factory.models.loading import load_adapter
from flow_factory.models.proof import prove
from flow_factory.policy.targets import dead_ends, target_names
from flow_factory.runs.rows import row_checks
from flow_factory.training.text_encoders import Encoders, loaded_later
from flow_factory.types import Clip, Cond, Row
from flow_factory.utils.errors import UserError
from tests.conftest import cells, policy_over
from tests.data.encoded import encode_rows
from tests.data.rows import same
from tests.models.breadth import NAMED
from tests.models.cases import CASES, EACH, SQUARE, call_of, every_case, over, picture, row, video
from tests.models.harness import Tiny, adapter_of, small, tiny
from tests.tiny.pipelines import saved
from tests.tiny.run import ROOT, write_run

FAMILIES = [name for name in MODELS if name != "diffusers"]

# -- encoding ---------------------------------------------------------------------------------------------------------------------


@every_case
def test_a_row_encoded_twice_and_a_row_from_the_cache_have_the_same_velocity(name: str, tmp_path: Path) -> None:
    t, again, cached = tiny(name), Tiny(name), copy.copy(tiny(name))
    rows = [row(t.case, k) for k in (0, 1)]
    cache = ConditionCache(tmp_path, "these encoders")
    encode_rows(rows, lambda r: t.conds[r.id], cache)
    cached.conds = list(encode_rows(rows, refuse, cache))
    for k in (0, 1):
        step = t.roll(k)[1].kept[1]
        v = t.velocity(step, k)
        assert torch.equal(again.velocity(step, k), v) and torch.equal(cached.velocity(step, k), v)


@pytest.mark.parametrize("name", ["flux1-true-cfg", "qwen-image"])
def test_a_negative_prompt_that_rows_have_in_common_is_encoded_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case, asked = CASES[name], list[str]()
    adapter, other, call = adapter_of(case), adapter_of(case), call_of(case)
    texts = [(f"row {k}", negative) for k, negative in enumerate(("bad", "bad", "worse", "bad", None, None))]
    rows = [Row(k, prompt, negative) for k, (prompt, negative) in enumerate(texts)]
    assert adapter.guided(call)
    embed = adapter.embed
    monkeypatch.setattr(adapter, "embed", lambda text, *rest: asked.append(text) or embed(text, *rest))
    with torch.no_grad(), small(adapter.pipe), small(other.pipe):
        for row in rows:
            other.place(torch.device("cpu"))  # which forgets
            assert same(adapter.encode(row, call), other.encode(row, call))
    assert [text for text in asked if not text.startswith("row")] == ["bad", "worse", "bad", adapter.negative]


@over([name for name in EACH if CASES[name].model_type != "diffusers"])
def test_what_an_encoded_row_takes_is_estimated(name: str) -> None:
    t = tiny(name)
    (embeds,) = (v for v in tree_leaves(t.conds[0]["prompt_embeds"]))
    most = t.adapter.embedded(t.transformers[0].config, t.call.get("max_sequence_length", t.adapter.text_length))
    assert embeds.numel() <= most and (embeds.numel() == most or not t.adapter.pads_prompts)


UNPADDED = {"krea2": 5}
"""Tokens of the negative prompt of rows that have none, where padding is left out; elsewhere it is as long as a prompt."""


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_row_of_a_published_model_takes_32_megabytes_at_most(model_type: str) -> None:
    """In 16 bits, with its negative prompt; pictures are kept by reference, or at the size that the pipeline uses."""
    family, tokens = MODELS[model_type], MODELS[model_type].text_length
    tokens += UNPADDED.get(model_type, tokens) * (family.cfg is not None)
    values = family.embedded(shape_of(family, family.components[0], None).config, tokens)
    assert 0 < values * 2 <= 32e6


@pytest.mark.exhaustive
@over(EACH)
def test_a_row_encoded_in_the_middle_of_a_run_has_the_bits_of_the_start(name: str) -> None:
    """By encoders that are loaded when the policy is there, set aside, and loaded again."""
    case = CASES[name]
    at_start = Tiny(name, "bf16")
    model = SimpleNamespace(model_name_or_path=str(saved(case.checkpoint)), model_type=case.model_type, pipeline_class=None)
    config: Any = SimpleNamespace(model=model, mixed_precision="bf16", data=SimpleNamespace(enable_preprocess=True, encode="window"))
    names = loaded_later(config)
    adapter = load_adapter(model.model_name_or_path, model.model_type, "bf16", without=names)
    assert names and all(getattr(adapter.pipe, part) is None for part in names)
    policy_over(adapter, "bf16", lora_rank=2, target_modules="default", target_components=tuple(adapter.field.bare))
    late = Encoders(config, adapter, torch.device("cpu"), verbose=False)
    for idle in ("drop", "offload", "keep"):
        late.idle = idle
        with small(adapter.pipe):
            conds = [late.encode(row(case, k), at_start.call) for k in (0, 1)]
        assert all(getattr(adapter.pipe, part) is None for part in names)
        for cond, first in zip(conds, at_start.conds, strict=True):
            (here, structure), (there, other) = tree_flatten(cond), tree_flatten(first)
            assert structure == other
            for a, b in zip(here, there, strict=True):
                assert torch.equal(a, b) and a.dtype == b.dtype if isinstance(a, torch.Tensor) else a == b


def refuse(row: Row) -> Cond:
    raise AssertionError(f"row {row.id} was encoded again")


def test_rows_with_a_negative_prompt_and_rows_without_do_not_go_with_shared_weights(tmp_path: Path) -> None:
    """Of a pipeline that may run the transformer once more for the former; the families all have a negative prompt of their own."""
    both = [Row(0, "a dog", "a cat", source="train.jsonl:1"), Row(1, "a dog", source="train.jsonl:2")]
    sharded = [f"config_file={ROOT}/examples/launch/fsdp2.yaml", "num_processes=2"]
    unknown = load_config(write_run(tmp_path), ["model.model_type=diffusers", *sharded])

    def asked(config: RunConfig, rows: list[Row]) -> None:
        for one, check in product(rows, row_checks(config, (), trained=True)):
            check(one)

    for rows in (both, both[::-1]):
        with pytest.raises(UserError, match="train.jsonl:2: no negative_prompt, but other rows have one"):
            asked(unknown, rows)
    asked(unknown, both[:1]), asked(unknown, both[1:])
    asked(load_config(tmp_path / "tiny.yaml", sharded), both)


# -- condition files --------------------------------------------------------------------------------------------------------------


def with_files(images: int, videos: int) -> Row:
    return Row(0, "a dog", images=(str(picture(SQUARE, 0)),) * images, videos=(str(video(5, 0)),) * videos, source="train.jsonl:7")


@pytest.mark.parametrize("model_type", MODELS)
def test_a_wrong_number_of_condition_files_is_refused(model_type: str) -> None:
    family = MODELS[model_type]
    (least, most), (fewest, many) = family.images, family.videos
    inputs = dict.fromkeys(family.needs, ["there.png"])
    for images in range(least, min(most, 4) + 1):
        family.check_row(replace(with_files(images, fewest), image_inputs=inputs))
        if inputs:
            with pytest.raises(UserError, match=rf"train.jsonl:7: no {family.needs[0]}; {family.__name__} takes one a row"):
                family.check_row(with_files(images, fewest))
    wrong = [(least - 1, fewest), (most + 1, fewest), (least, fewest - 1), (least, many + 1)]
    for images, videos in ((i, v) for i, v in wrong if i >= 0 and v >= 0):
        with pytest.raises(UserError, match=r"train.jsonl:7: \d+ condition (image|video)s; \w+ takes \d"):
            family.check_row(with_files(images, videos))


@pytest.mark.parametrize(("name", "images", "wants"), [
    ("wan21-i2v", 2, "the first picture of the video only"), ("wan22-5b-i2v", 2, "the first picture of the video only"),
    ("wan21-first-and-last", 1, "the first and the last picture of the video"),
])  # fmt: skip
def test_a_wan_checkpoint_says_which_pictures_it_takes(name: str, images: int, wants: str) -> None:
    plural = "s" * (images - 1)
    with pytest.raises(UserError, match=f"^train.jsonl:7: {images} condition image{plural}; this checkpoint takes {wants}$"):
        adapter_of(CASES[name]).encode(with_files(images, 0), tiny(name).call)


@pytest.mark.parametrize(("size", "sizes"), [(None, [(64, 64), (96, 80)]), (80, [(64, 64), (88, 73)]), ([72, 80], [(64, 64), (83, 69)])])
def test_condition_image_size_is_the_most_area_that_a_picture_keeps(size: Any, sizes: list[tuple[int, int]]) -> None:
    t = tiny("flux2-two-images")
    pictures = t.adapter.conditions(row(t.case), t.call | {"condition_image_size": size})["image"]
    assert [p.size for p in pictures] == sizes


def test_a_video_that_the_vae_cannot_take_is_refused() -> None:
    odd = replace(with_files(0, 1), videos=(str(video(7, 0)),))
    with pytest.raises(UserError, match=r"train.jsonl:7: .*mp4 has 7 frames; the VAE takes 5 or 9: cut it, or add some"):
        adapter_of(CASES["wan21-v2v"]).encode(odd, tiny("wan21-v2v").call)


# -- sizes ------------------------------------------------------------------------------------------------------------------------


def shown(t: Tiny, **call: Any) -> Any:
    """What is drawn with other call arguments."""
    other = copy.copy(t)
    other.call = t.call | call
    other.adapter.check_call(other.call)
    return other.evaluate()[0]


@pytest.mark.parametrize(("height", "width"), [(0, 7), (9, 0), (3, 40)])
@over([name for name in EACH if name not in ("sana", "hidream")])  # they have sizes of their own, see below
def test_a_size_that_cannot_be_is_refused_and_the_nearest_one_is_drawn(name: str, height: int, width: int) -> None:
    t = tiny(name)
    wrong = {"height": t.call["height"] + height, "width": t.call["width"] + width}
    with pytest.raises(UserError, match=rf"height {wrong['height']}, width {wrong['width']}: .* makes multiples of \d+ pixels") as error:
        t.adapter.check_call(t.call | wrong)
    near = [int(n) for n in re.findall(r"the nearest size is (\d+) x (\d+)$", str(error.value))[0]]
    drawn = shown(t, height=near[0], width=near[1])
    assert (drawn.frames[0] if isinstance(drawn, Clip) else drawn).size == (near[1], near[0])
    step = t.adapter.size_step()
    assert all(abs(n - wrong[k]) <= step / 2 for n, k in zip(near, ("height", "width"), strict=True))


@pytest.mark.parametrize(("name", "reason"), [
    ("sana", "`height` and `width` have to be divisible by 32 but are 40 and 32"),  # whatever the VAE does; the real one's step is 32
    ("hidream", "HiDreamImagePipeline draws height 32, width 16 when it is asked for height 48, width 32; write what it draws"),
])  # fmt: skip
def test_a_size_that_only_the_pipeline_knows_to_be_wrong_is_found_by_a_proof(name: str, reason: str) -> None:
    t = tiny(name)
    call = t.call | {"height": t.call["height"] + t.adapter.size_step() * (4 if name == "sana" else 1)}
    t.adapter.check_call(call)
    with small(t.adapter.pipe), pytest.raises(UserError, match=reason):
        prove(t.adapter, t.conds[0], call, 1)


@over([name for name in EACH if "num_frames" in call_of(CASES[name])])
def test_a_number_of_frames_that_cannot_be_is_refused_and_its_neighbours_are_drawn(name: str) -> None:
    t = tiny(name)
    with pytest.raises(UserError, match=r"num_frames 8: \w+ makes a multiple of \d, plus 1; write \d+ or \d+") as error:
        t.adapter.check_call(t.call | {"num_frames": 8})
    for frames in map(int, re.findall(r"write (\d+) or (\d+)", str(error.value))[0]):
        assert len(shown(t, num_frames=frames).frames) == frames


# -- the published architectures --------------------------------------------------------------------------------------------------


PUBLISHED = [(family, name) for family in FAMILIES for name in ("", *MODELS[family].variants)]


@cells("model_type", "hub_name", PUBLISHED, [(family, name) for family, name in PUBLISHED if family in NAMED.values()])
def test_a_published_architecture_has_the_default_targets_and_the_dead_ends(model_type: str, hub_name: str) -> None:
    family = MODELS[model_type]
    module = shape_of(family, "transformer", None, hub_name)
    for target in family.targets_in(module):
        assert target_names(module, "transformer", target, ())
    assert len(dead_ends(module, family.dead_ends)) == len(family.dead_ends)
    counted = sum(p.numel() for p in module.parameters())
    assert counted == pytest.approx(family.published_as(hub_name)[0]["transformer"], rel=1e-3)
