"""A vision-language model as judge: what it is asked, on a server and here, and what of its answers is a score."""

import json
import math
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from flow_factory.hparams import RewardArguments
from flow_factory.rewards import REWARDS
from flow_factory.rewards.failures import Failed
from flow_factory.rewards.judges.question import Template, load_template
from flow_factory.rewards.judges.verdict import one_word, preferred, rubric
from flow_factory.rewards.loading import require_files
from flow_factory.types import Clip, Row
from flow_factory.utils.errors import RewardError, UserError
from tests.conftest import ROOT
from tests.rewards.test_rewards import rewards
from tests.tiny.encoders import qwen_processor
from tests.tiny.judge_server import bright, brightness, judge, seen, text, tokens
from tests.tiny.run import environment

SHADES = [Image.new("RGB", (8, 8), (k, k, k)) for k in (10, 60, 110, 160, 210)]
LIGHT = torch.tensor([brightness(shade) for shade in SHADES])
VQA = [["How many dogs are in the image?", "one"], ["Is the dog red?", "Yes"]]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flow_factory.rewards.failures.PAUSE", 0.001)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with judge() as (address, _):
        yield address


def scored(name: str, address: str, media: list[Any] = SHADES, row: Row | None = None, **extra: Any) -> Tensor:
    """(n,) scores of a group."""
    reward = rewards(name, api_base_url=address, **extra)
    return reward.score([row or Row(0, "a dog", columns={"vqa_list": VQA})], [media])[0][:, 0]


# -- on a server ------------------------------------------------------------------------------------------------------------------------


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


# -- servers that fail ------------------------------------------------------------------------------------------------------------------


def test_an_answer_belongs_to_its_own_picture_or_is_missing_whatever_the_server_does() -> None:
    """Twelve rounds of groups, asked eight at a time; the same request is answered at last, or not."""
    luck = random.Random(0)
    faults = [500, 429, 503, 400, None, b"", b"{", b"[]", b'{"choices": []}', b'{"choices": [{"message": 1}]}', b"\xff" * 9]
    likely = b'{"choices": [{"logprobs": {"content": [{"top_logprobs": [{"token": "Yes", "logprob": %s}]}]}}]}'
    faults += [likely % number for number in (b"9", b"NaN", b'"x"', b"null")]

    begun: list[bool] = []

    def unsteady(body: dict[str, Any]) -> Any:
        if not begun:
            begun.append(True)
            return 503  # so that one at least is asked again
        return luck.choice(faults) if luck.random() < 0.25 else bright(body)

    with judge(unsteady) as (address, bodies):
        reward = rewards("vlm_yes_no", api_base_url=address, max_retries=3)
        reward.rewards[0].config.max_missing = 1.0
        found = torch.stack([reward.score([Row(0, "a dog")], [SHADES])[0][:, 0] for _ in range(12)])
        report = reward.finish_epoch()
    missing = found.isnan()
    assert 0 < missing.sum() < missing.numel() / 2 and report["missing/it"] == missing.sum()
    assert len(bodies) > found.numel(), "some were asked again"
    torch.testing.assert_close(found.where(~missing, LIGHT), LIGHT.expand_as(found))


def test_a_server_that_is_slow_or_gone_gives_no_score_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with judge(lambda body: None) as (address, bodies):
        reward = rewards("vlm_yes_no", api_base_url=address, max_retries=2)
        assert reward.score([Row(0, "a")], [SHADES])[0].isnan().all() and len(bodies) == 10
        with pytest.raises(RewardError, match=f"gave no score for 5 of 5 samples; at most 50% may be missing; its last error: {address}"):
            reward.finish_epoch()
    with pytest.raises(RewardError, match=f"reward 'it': on_failure: stop: {address}"):
        scored("vlm_yes_no", address, max_retries=1, on_failure="stop")


def test_a_judge_that_trickles_is_given_up_and_one_that_hangs_is_left_at_an_interrupt() -> None:
    """A byte now and then is no answer, and an interrupt waits for none."""
    held = threading.Event()

    def trickles(connection: Any) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n")
        with suppress(OSError):
            while not held.wait(0.02):
                connection.sendall(b" ")

    with socket.create_server(("127.0.0.1", 0)) as server:
        answers = lambda: [threading.Thread(target=trickles, args=server.accept()[:1], daemon=True).start() for _ in SHADES]  # noqa: E731
        threading.Thread(target=answers, daemon=True).start()
        address = f"http://127.0.0.1:{server.getsockname()[1]}/v1"
        reward = rewards("vlm_yes_no", api_base_url=address, max_retries=1, timeout=0.2)
        assert reward.score([Row(0, "a")], [SHADES])[0].isnan().all()
        assert "does not answer in 0.2 s" in reward.counts.cause["it"]
        held.set()
    held.clear()

    def hangs(body: dict[str, Any]) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        held.wait(60)

    with judge(hangs) as (address, _):
        with pytest.raises(KeyboardInterrupt):
            scored("vlm_yes_no", address, SHADES[:1])
        assert not held.is_set()
        held.set()


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_no_request_will_change_ends_the_run_at_once(status: int) -> None:
    with judge(lambda body: status) as (address, bodies), pytest.raises(RewardError, match=f"{address} answers {status}: it cannot"):
        scored("vlm_yes_no", address, max_concurrent=1, api_key="s3cr3t")
    assert len(bodies) <= len(SHADES)


def test_a_server_is_asked_before_the_run_and_not_by_a_check(server: str) -> None:
    def asked(now: bool, **extra: Any) -> None:
        require_files([RewardArguments(name="it", reward_model="vllm_evaluate", extra_kwargs=extra)], now)

    asked(now=True, api_base_url=server)
    asked(now=False, api_base_url="http://127.0.0.1:9/v1")
    with pytest.raises(UserError, match="reward 'it': api_base_url: http://127.0.0.1:9/v1 does not answer .*; start the server first"):
        asked(now=True, api_base_url="http://127.0.0.1:9/v1")
    with pytest.raises(UserError, match=f"reward 'it': vlm_model: {server} has no 'other'; it has judge, "):
        asked(now=True, api_base_url=server, vlm_model="other")


@pytest.mark.parametrize(("name", "extra", "said"), [
    ("vlm_yes_no", {"api_base_url": "localhost:8000"}, "api_base_url: 'localhost:8000' is not an address such as http://"),
    ("vlm_yes_no", {"timeout": "long"}, "timeout: wants a number of at least 0.001, got 'long'"),
    ("vlm_yes_no", {"max_retries": 0}, "max_retries: wants a number of at least 1, got 0"),
    ("vlm_yes_no", {"model_name_or_path": "a/b", "vlm_model": "b"}, "vlm_model is for a judge on a server, and model_name_or_path"),
    ("vlm_yes_no", {"template": "gone.yaml"}, "template: gone.yaml: No such file or directory; write the path of a YAML file, or one"),
    ("vlm_yes_no", {"on_failure": "skip"}, "on_failure: wants mask or stop, got 'skip'"),
    ("vlm_yes_no", {"frames": 0}, "frames: wants a number of at least 1, got 0"),
    ("vlm_pairwise", {"opponents": 0}, "opponents: wants a number of at least 1, got 0"),
    ("vlm_pairwise", {"by": "luck"}, "by: wants token or answer, got 'luck'"),
    ("vlm_yes_no", {"mean": "geometric"}, "has no key 'mean'; vlm_yes_no takes none of its own"),
    ("vlm_pairwise", {"mean": "geometric"}, "has no key 'mean'; vlm_pairwise takes by, opponents"),
    ("GenEval2", {"mean": "median"}, "mean: wants arithmetic or geometric, got 'median'"),
    ("rational_rewards_t2i", {"aspects": ["beauty"]}, "aspects: wants some of text_faithfulness, physical_quality, text_"),
])  # fmt: skip
def test_keys_that_are_wrong_are_said_by_a_check(name: str, extra: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=f"reward 'it':? {said}"):
        require_files([RewardArguments(name="it", reward_model=name, extra_kwargs=extra)], now=False)


@pytest.mark.parametrize(("name", "user", "said"), [
    ("vlm_yes_no", "Good?", "vlm_yes_no wants {image} in its user text, got none"),
    ("vlm_rubric", "{image_a} {image}", "vlm_rubric wants {image} in its user text, got {image}, {image_a}"),
    ("vlm_pairwise", "{image}", "vlm_pairwise wants {image_a} and {image_b} in its user text, got {image}"),
])  # fmt: skip
def test_a_template_shows_what_the_kind_of_judge_scores(tmp_path: Path, name: str, user: str, said: str) -> None:
    (tmp_path / "t.yaml").write_text(json.dumps({"user": user, "aspects": {"a": "A"}}))
    with pytest.raises(UserError, match=f"reward 'it': template: .*t.yaml: {said}$"):
        require_files([RewardArguments(name="it", reward_model=name, extra_kwargs={"template": f"{tmp_path}/t.yaml"})], now=False)


@pytest.mark.parametrize(("content", "said"), [
    ("[1]", "has no text under the key user"), ("user: [", "is not YAML"), ("user: a\nusers: b", "has the key 'users'; it takes "),
    ("user: a\nscale: [1]", "scale must be a list of two"), ("user: a\nscale: [1, 1]", "scale must be a list of two different"),
    ("user: a\nanswers: [Yes, No]", 'answers must be a list of two different texts, such as \\["Yes", "No"\\] in quotes'),
    ("user: a\nsystem: see {image}", "system has {image}, and only user may show pictures"),
    ("user: a\naspects: [b]", "aspects must map names to the titles"), ("user: a\naspects: {a b: c}", "'a b' must be a name of letters"),
    ("user: a\nsystem: 3", "system must be a text"),
])  # fmt: skip
def test_a_damaged_template_is_said_in_one_line(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "t.yaml").write_text(content)
    with pytest.raises(UserError, match=f"reward 'it': template: .*t.yaml.* ?{said}") as caught:
        load_template("it", str(tmp_path / "t.yaml"))
    assert "\n" not in str(caught.value)


# -- what of an answer is a score -------------------------------------------------------------------------------------------------------

T2I = load_template("it", "rational_rewards_t2i")
LONG = """# User Request Analysis
Text Faithfulness matters here, say 3 of 4.
# Detailed Judgement
1. Text Faithfulness:
## Justification: two dogs of the 3, a score of 4 would be too much
## Score: 3.4
2. **Physical and Visual Quality:**
## Justification: fine
## Score: [3.1]
3. Text Rendering:
## Score: N/A
# Summary: Score: 1
"""


@pytest.mark.parametrize(("answer", "score"), [
    (LONG, (3.25 - 1) / 3),
    (LONG.replace("N/A", "4"), (3.5 - 1) / 3),
    ("<think>Text Faithfulness: 1</think>" + LONG, (3.25 - 1) / 3),
    ("Text Faithfulness: 4\nPhysical and Visual Quality: **2.5/4**\nText Rendering: n/a", (3.25 - 1) / 3),
    ('{"text_faithfulness": 4, "Physical and Visual Quality": 2.5, "text_rendering": null}', (3.25 - 1) / 3),
    ('```json\n{"text_faithfulness": 4, "physical_quality": 1, "text_rendering": "N/A"}\n```', 0.5),
    (LONG.replace("3.4", "4.1"), None), (LONG.replace("3.4", "0"), None), (LONG.replace("3.4", "-3"), None),
    (LONG.replace("3.4", "3 or 4"), None), (LONG.replace("3.4", "about 3.4"), None), (LONG.replace("3.4", "nan"), None),
    (LONG.replace("3.4", "3.4\n## Score: 2"), None), (LONG.replace("## Score: 3.4", ""), None), (LONG.partition("3. Text")[0], None),
    (LONG.replace("3.4", "N/A").replace("[3.1]", "N/A"), None), (LONG.replace("3.4", "1e9"), None),
    ("I cannot judge this picture.", None), ("", None), ("4", None), ("{}", None), ("null", None), ("[4, 4, 4]", None),
    ('{"text_faithfulness": true, "physical_quality": 1, "text_rendering": 1}', None),
    ('{"text_faithfulness": NaN, "physical_quality": 1, "text_rendering": 1}', None),
    ('{"text_faithfulness": "4", "physical_quality": 1, "text_rendering": 1}', None),
])  # fmt: skip
def test_a_rubric_is_read_strictly(answer: str, score: float | None) -> None:
    found = rubric(answer, T2I, list(T2I.aspects))
    assert isinstance(found, Failed) if score is None else found == pytest.approx(score)


@given(st.text(alphabet=st.sampled_from('1234.,-/:#* \n{}[]"NAaScore'), max_size=60), st.integers(0, 2))
@settings(max_examples=30, deadline=None, database=None, derandomize=True)
def test_no_answer_is_a_number_outside_the_scale(noise: str, at: int) -> None:
    for answer in (noise, LONG.replace("## Score:", f"## Score: {noise}", at + 1), f"Text Faithfulness: {noise}"):
        found = rubric(answer, T2I, ["text_faithfulness"])
        assert isinstance(found, Failed) or 0 <= found <= 1


@pytest.mark.parametrize(("answer", "score"), [
    ("A", 1), ("b.", 0), ("Winner: A", 1), ("**Final answer: B**", 0), ("A is nice.\nBetter: tie", 0.5), ("The better is [A]", None),
    ("A or B", None), ("Winner: C", None), ("", None), ("Winner: A\nbut B is close", None), ("<think>Winner: A</think>", None),
])  # fmt: skip
def test_a_preference_is_read_strictly(answer: str, score: float | None) -> None:
    found = preferred(answer, ("A", "B"))
    assert isinstance(found, Failed) if score is None else found == score


@pytest.mark.parametrize(("answer", "score"), [
    ("Image 1 is better", 1), ("Both are good.\n**Image 2 is better than Image 1.**", 0), ("Image 1 is betterish", None),
    ("Image 3 is better", None), ("I think Image 1 is better", None), ("tie", 0.5),
])  # fmt: skip
def test_a_preference_in_several_words_is_read_strictly(answer: str, score: float | None) -> None:
    found = preferred(answer, ("Image 1 is better", "Image 2 is better"))
    assert isinstance(found, Failed) if score is None else found == score


def test_unified_reward_compares_the_pictures_of_a_group() -> None:
    def better(body: dict[str, Any]) -> dict[str, Any]:
        a, b = (brightness(part) for part in seen(body) if isinstance(part, Image.Image))
        return text(f"Both show it.\nImage {1 if a > b else 2} is better than Image {2 if a > b else 1}.")

    with judge(better) as (address, _):
        found = scored("UnifiedReward_pairwise", address, SHADES[:4])
    assert found.tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])


def test_a_judge_that_says_neither_yes_nor_no_gives_no_score() -> None:
    assert one_word((0.3, 0.1), ("Yes", "No")) == pytest.approx(0.75)
    for both in ((0.0, 0.0), (0.03, 0.01), (math.nan, 0.5)):
        assert isinstance(one_word(both, ("Yes", "No")), Failed)


# -- on this machine --------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vlm(keys: Callable[[str], dict[str, Any]]) -> Path:
    return Path(keys("vlm")["model_name_or_path"])


def by_hand(folder: Path, said: str, image: Image.Image) -> Tensor:
    """(vocabulary,) probabilities of the answer's first token, by the model's own forward on a chat written out."""
    processor = qwen_processor()
    chat = f"<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{said}<|im_end|>\n<|im_start|>assistant\n"
    inputs = processor(text=[chat], images=[image], return_tensors="pt")
    model = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(**inputs).logits[0, -1].softmax(-1)


def test_a_judge_here_weighs_the_first_token_too(vlm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flow_factory.rewards.judges.verdict.LEAST", 0.0)  # a random one says neither
    (tmp_path / "mine.yaml").write_text("user: '{image}Is it {prompt}?'\nanswers: [red, blue]")
    config: dict[str, Any] = {"model_name_or_path": str(vlm), "template": "mine.yaml"}
    images = [Image.new("RGB", (56, 56), color) for color in ("red", "green", "blue")]
    found = rewards("vlm_yes_no", **config).score([Row(0, "a circle")], [images])[0][:, 0]
    encode = qwen_processor().tokenizer.encode
    expected = []
    for image in images:
        likely = by_hand(vlm, "Is it a circle?", image)
        ids = [{encode(s + f)[0] for f in (w, w.upper(), w.capitalize()) for s in ("", " ")} for w in ("red", "blue")]
        sums = [sum(likely[k].item() for k in one) for one in ids]
        expected.append(sums[0] / sum(sums))
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-4, rtol=0)
    alone = rewards("vlm_yes_no", 1, **config).score([Row(0, "a circle")], [images[::-1]])[0][:, 0]
    assert torch.equal(alone.flip(0), found), "its neighbours move nothing, not by a bit"


def test_soft_tifa_here_and_an_answer_without_an_end(vlm: Path) -> None:
    image = Image.new("RGB", (56, 56), "red")
    found = rewards("GenEval2", model_name_or_path=str(vlm)).score([Row(0, "a", columns={"vqa_list": VQA[1:]})], [[image]])[0][0, 0]
    encode = qwen_processor().tokenizer.encode
    likely = by_hand(vlm, "Is the dog red? Answer in one word.", image)
    assert found == pytest.approx(sum(likely[k].item() for k in {encode(w)[0] for w in ("Yes", "yes", " yes", " Yes")}), abs=1e-5)
    wordy = rewards("vlm_rubric", model_name_or_path=str(vlm), max_tokens=3)
    assert wordy.score([Row(0, "a")], [[image]])[0].isnan().all()
    wordy.rewards[0].config.max_missing = 1.0
    wordy.finish_epoch()


def test_a_checkpoint_of_a_judge_is_looked_at_before_anything_is_loaded(vlm: Path) -> None:
    require_files([RewardArguments(name="it", reward_model="GenEval2", extra_kwargs={"model_name_or_path": str(vlm)})], now=True)
    with pytest.raises(UserError, match="reward 'it': model_name_or_path: './gone' is neither a folder"):
        require_files([RewardArguments(name="it", reward_model="GenEval2", extra_kwargs={"model_name_or_path": "./gone"})], now=True)


def test_templates_that_come_along_are_whole() -> None:
    assert isinstance(T2I, Template)
    for name in REWARDS:
        if "judges" in REWARDS.table[name]:
            template = REWARDS[name].template_of(RewardArguments(name="it", reward_model=name))
            assert set(template.places) & {"image", "image_a"} and len(template.answers) == 2


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
