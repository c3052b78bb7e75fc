"""The families that are the generic adapter by name: every algorithm trains them, and runs resume and are shared out as for the others."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from flow_factory.core.condition_memo import ConditionMemo
from flow_factory.data.reader import read_rows
from flow_factory.models import MODELS
from flow_factory.models.loading import DTYPES, load_adapter, load_pipeline
from flow_factory.policy.compilation import Shapes, signature
from flow_factory.utils.errors import UserError
from tests.models.breadth import NAMED, config_of, done, replayed, run_of, saved, small, type_of
from tests.tiny.breadth import CASES
from tests.tiny.several import SMOOTH, assert_same_run, several, state_of

SEVEN = ("grpo", "grpo-guard", "nft", "awm", "dpo", "dgpo", "crd")
FIVE = ("qwen_image21_edit", "hunyuan_video15", "flux_fill", "kandinsky5_t2i", "krea2")
"""An edit, a video with a guider, a mask, embeddings of cumulative lengths, and guidance that 0 turns off."""


def test_every_family_by_name_has_a_tiny_checkpoint() -> None:
    assert set(NAMED) <= {case.pipeline for case in CASES.values()}
    assert all(MODELS[name].published.keys() >= {"transformer", "text_encoder", "vae"} for name in NAMED.values())


@pytest.mark.exhaustive
@pytest.mark.parametrize("trainer", SEVEN)
@pytest.mark.parametrize("name", FIVE)
def test_every_algorithm_trains_a_family(name: str, trainer: str, tmp_path: Path) -> None:
    case = CASES[name]
    assert type_of(case) in MODELS and type_of(case) != "diffusers"
    with small(case):
        done(case, tmp_path, trainer)


@pytest.mark.exhaustive
@pytest.mark.parametrize("trainer", ["grpo", "nft"])
@pytest.mark.parametrize("name", ["qwen_image21", "kandinsky5_t2v"])
def test_a_family_resumes_to_the_bit_and_two_processes_do_what_one_does(name: str, trainer: str, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(dict(config_of(CASES[name], tmp_path, trainer))))
    save = tmp_path / "save"
    several(tmp_path, 2, {"two": SMOOTH})
    several(tmp_path, 1, {"one": SMOOTH, "resumed": (*SMOOTH, f"model.resume_path={save}/one/checkpoints/epoch_1")})
    assert_same_run(save / "two", save / "one")
    here, unbroken = state_of(save / "resumed", 2), state_of(save / "one", 2)
    assert here.keys() == unbroken.keys() and [key for key in unbroken if not torch.equal(here[key], unbroken[key])] == []


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["qwen_image21_edit", "wan_vace", "longcat_edit", "hunyuan_video15"])
def test_two_samples_of_a_row_are_evaluated_as_each_alone(name: str, tmp_path: Path) -> None:
    """As `ff-eval` and `ff-generate` ask for them, also of a pipeline that draws one a call."""
    case = CASES[name]
    with small(case):
        _, adapter, cond = replayed(case, tmp_path, "fp32")
        both, *alone = (
            adapter.evaluate(cond, case.call, 2, [torch.Generator().manual_seed(k) for k in seeds]) for seeds in ((0, 1), (0,), (1,))
        )
    for one, other in zip(both, [*alone[0], *alone[1]], strict=True):
        a, b = (np.asarray(getattr(x, "frames", [x])[-1], np.int16) for x in (one, other))
        assert abs(a - b).max() <= 2
    assert both[0] != both[1]


@pytest.mark.exhaustive
def test_too_few_frames_for_kandinsky_are_refused(tmp_path: Path) -> None:
    """Its pipeline would draw black."""
    case = CASES["kandinsky5_i2v"]
    adapter = load_adapter(saved(case, tmp_path), type_of(case))
    adapter.check_call(case.call)
    with pytest.raises(UserError, match=r"num_frames 13: .* it draws black; write 17 or more"):
        adapter.check_call({**case.call, "num_frames": 13})


@pytest.mark.exhaustive
@pytest.mark.parametrize(("name", "off"), [("krea2", 0.0), ("hunyuan_image_plain_cfg", 1.0), ("kandinsky5_t2i", 1.0)])
def test_guidance_that_is_off_runs_the_transformer_once(name: str, off: float, tmp_path: Path) -> None:
    """And guidance that is on changes the picture: the guider of a pipeline is set by `guidance_scale` too."""
    case, drawn, ran = CASES[name], [], []
    with small(case):
        _, adapter, cond = replayed(case, tmp_path, "fp32")
        hook = adapter.field.bare["transformer"].register_forward_hook(lambda *_: ran.append(1))
        for scale, times in ((off, 2), (off + 2, 4), (off + 3, 4)):
            ran.clear()
            call = {**case.call, "guidance_scale": scale}
            drawn.append(adapter.evaluate(cond, call, 2, [torch.manual_seed(0)])[0].tobytes())
            assert adapter.guided(call) == (scale > off) and len(ran) == times
        hook.remove()
        assert len(set(drawn)) == 3
        assert not adapter.guided(adapter.with_guidance(case.call, 1.0)) and adapter.guided(adapter.with_guidance(case.call, 2.0))


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_krea_keeps_no_padding_and_draws_what_the_stock_pipeline_draws(dtype: str, tmp_path: Path) -> None:
    case = CASES["krea2"]
    with small(case):
        _, adapter, cond = replayed(case, tmp_path, dtype)
        row = read_rows(tmp_path / "data", "train")[0]
        seeds = [[torch.Generator().manual_seed(k) for k in (0, 1)] for _ in range(2)]
        mine = adapter.evaluate(cond, case.call, 3, seeds[0])
        stock = load_pipeline(saved(case, tmp_path), type(adapter), DTYPES[dtype])
        words = {"prompt": row.prompt, "negative_prompt": row.negative_prompt}
        drawn = stock(**words, num_images_per_prompt=2, num_inference_steps=3, generator=seeds[1], **case.call).images
    assert [picture.tobytes() for picture in mine] == [picture.tobytes() for picture in drawn]
    for states, mask in cond["encoded"]["encode_prompt"]:
        assert len(states) == mask.sum() < mask.numel()
        assert states.numel() == type(adapter).embedded(stock.transformer.config, len(states))


@pytest.mark.exhaustive
def test_krea_makes_padding_for_a_call_and_keeps_none_in_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts of any length are one shape to the compiler, and the memos of an epoch's micro-batches hold no texts."""
    case, counted, allow = CASES["krea2"], list[int](), Shapes.allow
    monkeypatch.setattr(Shapes, "allow", lambda *args: counted.append(allow(*args)))
    with small(case), torch._dynamo.config.patch(recompile_limit=8, accumulated_recompile_limit=256, fail_on_recompile_limit_hit=False):
        run = run_of(case, tmp_path, "grpo", "model.compile=true", "model.compile_backend=eager", "train.guidance_scale=4.5")
        conds = [run.context.conds[k] for k in range(len(run.context.rows))]
        assert len({signature(cond) for cond in conds}) == len(conds) == 2 and counted == [1]
        shapes = set[torch.Size]()
        hook = run.context.adapter.field.bare["transformer"].register_forward_pre_hook(
            lambda module, args, given: shapes.add(given["encoder_hidden_states"].shape), with_kwargs=True
        )
        rollouts = run.trainer.collector(0)
        for rollout in rollouts:
            rollout.advantage = torch.zeros(len(rollout.ids))
            for point in run.trainer.learner.points(rollout):
                run.trainer.learner.velocity_of(point)
        hook.remove()
    assert len(rollouts) == 2 and len(shapes) == 1
    assert [held_by(rollout.memo) for rollout in rollouts] == [[], []]


def held_by(memo: ConditionMemo) -> list[torch.Tensor]:
    leaves = torch.utils._pytree.tree_leaves([memo.given, memo.kept, *(vars(other) for other in memo.siblings.values())])
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
