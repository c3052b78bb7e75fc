"""Judges that fail, and keys and templates of one that are wrong: a picture has its own score or none, and the fault is a line."""

import json
import os
import random
import signal
import socket
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from flow_factory.hparams import RewardArguments
from flow_factory.rewards.judges.question import load_template
from flow_factory.rewards.loading import require_files
from flow_factory.types import Row
from flow_factory.utils.errors import RewardError, UserError
from tests.rewards.judging import LIGHT, SHADES, scored
from tests.rewards.reward_set import rewards
from tests.tiny.judge_server import bright, judge

# -- servers that fail ----------------------------------------------------------------------------------------------------------------


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


# -- what is configured ---------------------------------------------------------------------------------------------------------------


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
