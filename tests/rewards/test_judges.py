"""A vision-language model on a server as judge: what it is asked, and how its answers become scores."""

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from flow_factory.hparams import RewardArguments
from flow_factory.rewards.loading import require_files
from flow_factory.types import Clip, Row
from flow_factory.utils.errors import UserError
from tests.conftest import ROOT
from tests.rewards.judging import LIGHT, SHADES, scored
from tests.rewards.reward_set import rewards
from tests.tiny.judge_server import brightness, judge, seen, text, tokens
from tests.tiny.run import environment


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with judge() as (address, _):
        yield address


def test_yes_and_no_are_weighed_by_the_first_token(server: str) -> None:
    for name in ("vlm_yes_no", "vllm_evaluate"):
        torch.testing.assert_close(scored(name, server), LIGHT)


def test_soft_tifa_is_the_mean_probability_of_the_right_answers(server: str) -> None:
    count, yes = 0.25 * LIGHT + 0.05, 0.7 * LIGHT
    torch.testing.assert_close(scored("GenEval2", server), (count + yes) / 2)
    torch.testing.assert_close(scored("GenEval2", server, mean="geometric"), (count * yes).sqrt())
    assert scored("GenEval2", server, row=Row(0, "a", columns={"vqa_list": []})).isnan().all()


def test_a_rubric_is_the_mean_of_its_aspects_on_its_scale(server: str) -> None:
    for name in ("rational_rewards_t2i",):
        torch.testing.assert_close(scored(name, server), LIGHT, atol=1e-4, rtol=0)
        torch.testing.assert_close(scored(name, server, aspects=["text_rendering"]), LIGHT, atol=1e-4, rtol=0)
    for name in ("UnifiedReward", "vlm_rubric"):  # from 1 to 5
        torch.testing.assert_close(scored(name, server), LIGHT * 3 / 4, atol=1e-4, rtol=0)


def test_an_edit_is_judged_beside_its_source(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "white").save(tmp_path / "source.png")
    row = Row(0, "make it dark", images=(str(tmp_path / "source.png"),))
    with judge() as (address, bodies):
        torch.testing.assert_close(scored("rational_rewards_edit", address, row=row), LIGHT, atol=1e-4, rtol=0)
        with pytest.raises(UserError, match="needs condition images, and row 0"):
            scored("rational_rewards_edit", address, row=Row(0, "make it dark"))
    light = [[brightness(part) for part in seen(body) if isinstance(part, Image.Image)] for body in bodies]
    assert all(source == 1 for source, _ in light) and sorted(edit for _, edit in light) == pytest.approx(LIGHT.tolist())


def test_pairs_are_shown_in_both_orders_so_that_a_bias_for_the_first_cancels(server: str) -> None:
    def wins(a: float, b: float) -> float:
        first, second = (1 / (1 + math.exp(-4 * d - 0.7)) for d in (a - b, b - a))
        return (first + 1 - second) / 2

    expected = [sum(wins(a, b) for b in LIGHT.tolist() if b != a) / 4 for a in LIGHT.tolist()]
    found = scored("vlm_pairwise", server)
    torch.testing.assert_close(found, torch.tensor(expected))
    assert found.mean().item() == pytest.approx(0.5)
    turned = scored("vlm_pairwise", server, SHADES[::-1])
    torch.testing.assert_close(turned.flip(0), found)
    ring = [sum(wins(a, b) for b in near) / 2 for a, near in zip(LIGHT.tolist(), (LIGHT[[4, 1]], LIGHT[[0, 2]]), strict=False)]
    torch.testing.assert_close(scored("vlm_pairwise", server, opponents=1)[:2], torch.tensor(ring))
    assert scored("vlm_pairwise", server, SHADES[:1]).isnan().all(), "a group of one has nothing to compare"


def test_a_judge_that_reasons_names_the_better_one_in_its_last_line() -> None:
    def reasons(body: dict[str, Any]) -> dict[str, Any]:
        a, b = (brightness(part) for part in seen(body) if isinstance(part, Image.Image))
        return text(f"<think>B looks good. Winner: B</think>A is bright, B too.\nWinner: **{'tie' if a == b else 'A' if a > b else 'B'}**")

    with judge(reasons) as (address, _):
        found = scored("vlm_pairwise", address, [*SHADES[:3], SHADES[2]], by="answer")
    assert found.tolist() == pytest.approx([0, 1 / 3, 5 / 6, 5 / 6])


def test_unified_reward_compares_the_pictures_of_a_group() -> None:
    def better(body: dict[str, Any]) -> dict[str, Any]:
        a, b = (brightness(part) for part in seen(body) if isinstance(part, Image.Image))
        return text(f"Both show it.\nImage {1 if a > b else 2} is better than Image {2 if a > b else 1}.")

    with judge(better) as (address, _):
        found = scored("UnifiedReward_pairwise", address, SHADES[:4])
    assert found.tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])


def test_a_video_is_seen_in_frames_from_its_first_to_its_last() -> None:
    with judge() as (address, bodies):
        scored("vlm_yes_no", address, [Clip([*SHADES, SHADES[0]], 8.0)], frames=3)
        scored("vlm_yes_no", address, [Clip(SHADES[:1], 8.0)])
    shown = [[brightness(part) for part in seen(body) if isinstance(part, Image.Image)] for body in bodies]
    assert shown == [pytest.approx([LIGHT[k].item() for k in (0, 2, 0)]), pytest.approx([LIGHT[0].item()])]


def test_the_judge_is_told_what_the_template_says_and_a_prompt_is_no_template(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("system: Of {style}.\nuser: 'Of {prompt} ({tags}): {image}'\nanswers: ['true', 'false']\n")
    columns = {"style": "ink {prompt}", "tags": ["a", {"b": 1}]}
    with judge(lambda body: tokens(true=0.2, False_=0.1, false=0.6)) as (address, bodies):
        found = scored(
            "vlm_yes_no", address, SHADES[:1], Row(0, "{image} {tags} {nothing}", columns=columns),
            template="mine.yaml", vlm_model="m", api_key="k", top_logprobs=5,
        )  # fmt: skip
        with pytest.raises(UserError, match="reward 'it' needs the column 'style', and row 0"):
            rewards("vlm_yes_no", api_base_url=address, template="mine.yaml").check_columns([Row(0, "a")])
    (body,) = bodies
    assert found.tolist() == pytest.approx([0.25])
    assert body["messages"][0] == {"role": "system", "content": "Of ink {prompt}."}
    assert seen(body)[0] == 'Of {image} {tags} {nothing} (["a", {"b": 1}]): ' and len(seen(body)) == 2
    keys = ("model", "authorization", "logprobs", "top_logprobs", "max_tokens")
    assert [body[key] for key in keys] == ["m", "Bearer k", True, 5, 1]


def test_json_is_forced_where_it_is_asked_for() -> None:
    with judge(lambda body: text('{"alignment": 4, "quality": "N/A"}')) as (address, bodies):
        assert scored("vlm_rubric", address, SHADES[:1], json_answer=True).tolist() == [0.75]
    schema = bodies[0]["response_format"]["json_schema"]["schema"]
    assert schema["required"] == ["alignment", "quality"] and bodies[0]["response_format"]["type"] == "json_schema"


def test_a_server_is_asked_before_the_run_and_not_by_a_check(server: str) -> None:
    def asked(now: bool, **extra: Any) -> None:
        require_files([RewardArguments(name="it", reward_model="vllm_evaluate", extra_kwargs=extra)], now)

    asked(now=True, api_base_url=server)
    asked(now=False, api_base_url="http://127.0.0.1:9/v1")
    with pytest.raises(UserError, match="reward 'it': api_base_url: http://127.0.0.1:9/v1 does not answer .*; start the server first"):
        asked(now=True, api_base_url="http://127.0.0.1:9/v1")
    with pytest.raises(UserError, match=f"reward 'it': vlm_model: {server} has no 'other'; it has judge, "):
        asked(now=True, api_base_url=server, vlm_model="other")


@pytest.mark.slow
def test_the_quick_start_trains_with_judges_on_a_server_one_of_them_groupwise(tmp_path: Path) -> None:
    small = ["train.max_epochs=1", "train.unique_sample_num_per_epoch=2", "train.gradient_step_per_epoch=1", "train.lr_warmup_steps=0"]
    where = ["data.max_dataset_size=8", f"log.save_dir={tmp_path}", f"data.cache_dir={tmp_path}/cache", "run_name=judged"]
    with judge() as (address, bodies):
        both = ", ".join(
            f"{{reward_model: {name}, api_base_url: '{address}', vlm_model: judge}}" for name in ("vlm_yes_no", "vlm_pairwise")
        )
        command = [sys.executable, "-m", "flow_factory", "examples/quickstart.yaml", *small, *where, f"rewards=[{both}]"]
        done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "judged" / "metrics.jsonl").read_text().splitlines()]
    means = [line[key] for line in lines for key in line if "yesno" in key.replace("_", "") and "mean" in key]
    assert len(bodies) > 16 and means and all(0 < mean < 1 for mean in means)
