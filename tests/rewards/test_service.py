"""Rewards on a server: they score as they do here, and what cannot be scored is told why."""

import json
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from PIL import Image

from flow_factory.config import ConfigError
from flow_factory.config.service import load_rewards_config
from flow_factory.rewards.wire import MSGPACK, Body, packed, request_of
from flow_factory.types import Clip, Row
from flow_factory.utils.errors import UserError
from tests.rewards.remote import WEB, body, post, remote, scored
from tests.rewards.reward_set import pictures, rewards
from tests.tiny.reward_server import Reads, entry, numbered, says, service

# -- the same scores as in this process -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [{}, {"body": "multipart"}, {"pictures": "png", "body": "multipart"}, {"max_concurrent": 1}])
def test_scores_are_those_of_the_reward_itself(served: str, how: dict[str, Any]) -> None:
    media = pictures(11)
    expected = scored(rewards("jpeg_compressibility"), media)
    assert torch.equal(scored(remote(served, reward="size", size=5, **how), media), expected)
    groups = [[numbered(k + 1) for k in range(3)], [numbered(9), numbered(4)]]
    rows = [Row(0, "a"), Row(1, "b")]
    found = remote(served, "remote_group", reward="ranks", **how).score(rows, groups)
    assert [one[:, 0].tolist() for one in found] == [pytest.approx([1 / 3, 2 / 3, 1]), pytest.approx([1, 4 / 9])]


def test_videos_are_scored_and_a_missing_score_is_missing(served: str) -> None:
    clips = [Clip([Image.new("RGB", (8, 8), (k, k, k)) for k in (10, 20)], 8.0), Clip([Image.new("RGB", (8, 8), (5, 5, 5))], 8.0)]
    assert scored(remote(served, reward="bright"), clips).tolist() == [15, 5]
    reward = remote(served, reward="reads", columns=["fault"])
    found = scored(reward, [numbered(3), numbered(4)], fault=["none", "fine"], other=[object(), 1])
    assert found[0].isnan() and found[1] == 4 and reward.finish_epoch()["missing/it"] == 1
    with pytest.raises(UserError, match="reward 'it' needs the column 'fault', and row 0"):
        reward.check_columns([Row(0, "a")])


def test_the_older_protocol_is_spoken_by_both(served: str) -> None:
    told: list[dict[str, Any]] = []

    def public(headers: Any, content: bytes) -> bytes:
        told.append(json.loads(content))
        return WEB.post(f"{served}/compute?reward=reads", content=content).content

    with says(public) as address:
        assert scored(remote(address, max_concurrent=2), [numbered(k) for k in (5, 6, 7)], fault=["", "none", ""]).isnan().tolist() == [
            False, True, False,
        ]  # fmt: skip
    assert sorted(len(one["prompt"]) for one in told) == [1, 2] and set(told[0]) == {"prompt", "image", "extra"}
    spelt = {"prompts": told[0]["prompt"], "images": told[0]["image"], "videos": None}
    assert WEB.post(f"{served}/compute", json=spelt).json() == {"rewards": [5.0]}, "the first reward, and an older spelling"
    answer = WEB.post(f"{served}/compute", json={"prompt": ["a"], "image": ["!"]})
    assert answer.status_code == 400 and "base64" in answer.json()["error"]


# -- the service ----------------------------------------------------------------------------------------------------------------------


def test_a_request_that_cannot_be_scored_says_why(served: str) -> None:
    about = {
        404: ("no reward 'none'; there are reads", post(served, body(), "/score/none")),
        400: ("Content-Type 'text/plain'", post(served, Body("text/plain", b"x"))),
        422: ("'reads' needs image, and the request has prompt", post(served, packed(request_of("a", {"prompt": ["x"]}, "raw"), MSGPACK))),
        500: ("ValueError: a picture that it cannot bear", post(served, body(fault=["raise", ""]))),
    }
    for status, (text, answer) in about.items():
        assert answer.status_code == status and text in answer.json()["error"], answer.text
    other = post(served, body("a"), **{"Idempotency-Key": "b"})
    assert other.status_code == 400 and "the request's id 'a'" in other.json()["error"]
    assert WEB.get(f"{served}/ready").json() == {"status": "ready"} and WEB.get(f"{served}/health").json() == {"status": "ok"}


def test_a_repeated_request_is_answered_from_a_bounded_memory() -> None:
    with service(max_answers=2) as (address, _):

        def again(id: str, first: int) -> httpx.Response:
            given = {"prompt": ["x"], "image": [numbered(first)]}
            return post(address, packed(request_of(id, given, "raw"), MSGPACK), **{"Idempotency-Key": id})

        first, second = again("a", 1), again("a", 1)
        assert first.json() == second.json() == {"id": "a", "scores": [1.0], "error": None} and Reads.seen[1] == 1
        stranger = again("a", 2)
        assert stranger.status_code == 409 and Reads.seen[2] == 0
        again("b", 3), again("c", 4), again("a", 1)
        assert Reads.seen[1] == 2, "of two answers the third oldest is forgotten"
        text = WEB.get(f"{address}/metrics").text
    for line in ('ff_reward_requests_total{reward="reads",status="200"} 5.0', "ff_reward_repeated_total 1.0", "ff_reward_workers 1.0",
                 'ff_reward_samples_total{reward="reads"} 5.0', "ff_reward_queue_requests 0.0"):  # fmt: skip
        assert line in text


def test_the_service_answers_while_it_scores_and_batches_over_clients_and_its_queue_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    monkeypatch.setattr(Reads, "gate", gate)
    answers: dict[str, httpx.Response] = {}
    with service(entry(batch_size=8), max_queue=4, max_body_mb=1) as (address, queue):

        def ask(id: str) -> threading.Thread:
            def work() -> None:
                fault = {"fault": ["raise", ""]} if id == "bad" else {"fault": ["", ""]}
                answers[id] = post(address, body(id, **fault), **{"Idempotency-Key": id, "Samples": "2"})

            thread = threading.Thread(target=work)
            thread.start()
            return thread

        def until(condition: Any) -> None:
            while not condition():
                WEB.get(f"{address}/health")  # which it answers while the worker waits

        threads = [ask("first")]
        until(lambda: Reads.batches)
        for inside, id in enumerate(("one", "bad", "two", "three"), 1):
            threads.append(ask(id))
            until(lambda: len(queue.jobs) == inside)  # noqa: B023 (called at once)
            if id == "one":
                threads.append(ask(id))
                until(lambda: queue.metrics.repeated._value.get() == 1)
        full = post(address, body("more"), Samples="2")
        assert full.status_code == 503 and int(full.headers["Retry-After"]) >= 1 and "4 requests are waiting" in full.json()["error"]
        long = post(address, Body(MSGPACK, bytes(1_000_001)))
        assert long.status_code == 413 and "server.max_body_mb" in long.json()["error"]
        gate.set()
        for thread in threads:
            thread.join()
    assert Reads.batches[:2] == [2, 8] and sorted(Reads.batches[2:]) == [2, 2, 2, 2], "all together, and each alone, for one is at fault"
    assert answers.pop("bad").status_code == 500
    assert {id: a.json()["scores"] for id, a in answers.items()} == dict.fromkeys(["first", "one", "two", "three"], [7.0, 8.0])


def test_a_request_that_is_there_when_the_service_ends_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reads, "gate", gate := threading.Event())
    answers: list[httpx.Response] = []
    with service() as (address, _):
        thread = threading.Thread(target=lambda: answers.append(post(address, body())))
        thread.start()
        while not Reads.batches:
            WEB.get(f"{address}/health")
        (timer := threading.Timer(0.3, gate.set)).start()
    thread.join()
    timer.join()
    assert answers[0].json()["scores"] == [7.0, 8.0]


def test_a_token_is_asked_for(served: str) -> None:
    with service(token="s3cret") as (address, _):
        assert WEB.get(f"{address}/health").status_code == 200
        for headers in ({}, {"Authorization": "Bearer no"}, {"Authorization": "s3cret"}):
            assert WEB.get(f"{address}/metrics", headers=headers).status_code == 401
        assert post(address, body()).status_code == 401
        with pytest.raises(UserError, match="reward 'it': token: http.* refuses it \\(401\\)"):
            remote(address)
        assert scored(remote(address, token="s3cret"), [numbered(8)]).tolist() == [8]


# -- its config -----------------------------------------------------------------------------------------------------------------------


def test_a_file_of_rewards_is_read_as_strictly_as_a_run(tmp_path: Path) -> None:
    file = tmp_path / "rewards.yaml"
    file.write_text("rewards:\n  reward_model: CLIP\nserver:\n  port: 9\n  devices: cuda:1\n")
    config = load_rewards_config(file, ["server.workers=3"])
    assert (config.rewards[0].name, config.server.port, config.server.devices, config.server.workers) == ("clip", 9, ("cuda:1",), 3)
    entries = "  - reward_model: CLIP\n    wieght: 2\n  - reward_model: CLIP\n"
    file.write_text(f"rewards:\n{entries}server:\n  prot: 9\n  port: 99999\n  devices: [gpu]\nmore: 1\n")
    known = (
        "3: rewards.0.wieght: unknown key", "6: server.prot: unknown key. Did you mean 'port'", "7: server.port: must be",
        "8: server.devices.0: no device", "9: more: unknown key",
    )  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        load_rewards_config(file)
    for line, text in zip(str(caught.value).splitlines(), known, strict=True):
        assert line.startswith(f"{file}:{text}"), line
