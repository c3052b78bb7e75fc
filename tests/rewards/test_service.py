"""Rewards on a server and their client: every sample has its own score, or none, whatever happens between the two."""

import asyncio
import json
import math
import random
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from flow_factory.config import ConfigError
from flow_factory.config.service import load_rewards_config
from flow_factory.hparams import RewardArguments
from flow_factory.rewards.exchange import HTTPClient, Wrong
from flow_factory.rewards.failures import Failed
from flow_factory.rewards.link import Link, scores_in
from flow_factory.rewards.scoring import RewardSet, load_rewards
from flow_factory.rewards.service.reading import unpacked
from flow_factory.rewards.service.request_queue import Refused
from flow_factory.rewards.wire import JSON, MSGPACK, MULTIPART, Body, WireError, packed, request_of
from flow_factory.types import Clip, Row
from flow_factory.utils.errors import RewardError, UserError
from tests.rewards.test_rewards import pictures, rewards
from tests.tiny.reward_server import Faults, Reads, entry, numbered, says, service
from tests.tiny.run import environment, logged, tiny

WEB = httpx.Client(timeout=60, verify=False)
RANKS = "tests.tiny.reward_server:Ranks"
ABOUT = {"reads": {"groupwise": False, "takes": None}}


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flow_factory.rewards.failures.PAUSE", 0.001)
    monkeypatch.setattr(Reads, "gate", None)
    Reads.seen.clear()
    Reads.batches.clear()


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    clips = entry("tests.tiny.rewards:Bright", "bright")
    size = entry("jpeg_compressibility", "size")
    with service(entry(), entry(RANKS, "ranks"), clips, size) as (address, _):
        yield address


def remote(address: str, model: str = "remote", size: int = 16, **extra: Any) -> RewardSet:
    return rewards(model, size, server_url=address, **extra)


def scored(reward: RewardSet, media: list[Any], **columns: Any) -> Tensor:
    """(n,) of a row each."""
    rows = [Row(k, f"prompt {k}", columns={name: values[k] for name, values in columns.items()}) for k in range(len(media))]
    return torch.cat(reward.score(rows, [[one] for one in media]))[:, 0]


def body(id: str = "a", kind: str = MSGPACK, n: int = 2, **fields: Any) -> Body:
    given = {"prompt": ["x"] * n, "image": [numbered(k + 7) for k in range(n)], **fields}
    return packed(request_of(id, given, "png" if kind == JSON else "raw"), kind)


def post(address: str, body: Body, path: str = "/score/reads", **headers: str) -> httpx.Response:
    return WEB.post(address + path, content=body.content, headers={"Content-Type": body.kind, **headers})


# -- what is sent -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "form"), [(MSGPACK, "raw"), (MULTIPART, "raw"), (MULTIPART, "png"), (JSON, "png")])
def test_what_is_read_is_what_was_sent(kind: str, form: str) -> None:
    many = pictures(6)
    fields: dict[str, Any] = {
        "prompt": ["a — b", ""], "image": many[:2], "video": [many[:3], many[3:4]], "condition_images": [[], many[4:]],
        "condition_videos": [[many[:2]], []], "tags": [["a", {"b": 1}], None], "size": [1, 0.1],
    }  # fmt: skip
    sound = np.random.default_rng(0).uniform(-1, 1, (2, 2, 7)).astype(np.float32)
    fields |= {"audio": list(sound), "audio_sample_rate": [16000, 8000]} if kind != JSON else {}
    read = unpacked(*packed(request_of("it", fields, form), kind))
    assert (read.id, read.n, set(read.fields)) == ("it" if kind != JSON else "", 2, set(fields))

    def same(a: Any, b: Any) -> bool:
        if isinstance(a, list):
            return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
        if isinstance(a, Image.Image):
            return a.size == b.size and a.tobytes() == b.tobytes()
        return np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b

    assert all(same(values, read.fields[name]) for name, values in fields.items())


def test_a_picture_as_jpeg_is_nearly_itself_and_a_column_that_is_no_plain_value_is_named() -> None:
    image = Image.new("RGB", (32, 32), (200, 40, 90))
    (read,) = unpacked(*packed(request_of("it", {"prompt": [""], "image": [image]}, "jpeg"), MSGPACK)).fields["image"]
    assert np.abs(np.asarray(read, int) - np.asarray(image, int)).max() < 8
    for value in (object(), b"x", {1: 2}, 2**70, np.float32(1)):
        with pytest.raises(WireError, match="the column 'odd' has a value that cannot be sent"):
            request_of("it", {"prompt": [""], "odd": [value]}, "raw")


@pytest.mark.parametrize("kind", [MSGPACK, MULTIPART, JSON])
def test_a_damaged_body_is_refused_in_a_line_or_read_and_nothing_else(kind: str) -> None:
    luck, (name, whole) = random.Random(0), body(kind=kind)
    refused = 0
    for _ in range(300):
        spoilt = bytearray(whole)
        for _ in range(luck.randint(1, 4)):
            spoilt[luck.randrange(len(spoilt))] = luck.randrange(256)
        try:
            unpacked(name, bytes(spoilt[: luck.choice([len(spoilt), luck.randrange(len(spoilt))])]))
        except WireError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 300
    assert refused > 100
    for content in (b"", b"null", b"[]", b"{}", b'{"prompt": 1}', b'{"prompt": [1]}', b'{"prompt": ["a"], "image": [[1]]}', b"[" * 100_000):
        with pytest.raises(WireError):
            unpacked(kind if kind != MULTIPART else f"{MULTIPART}; boundary=x", content)


# -- the same scores as in this process -------------------------------------------------------------------------------------------------


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


# -- the service ------------------------------------------------------------------------------------------------------------------------


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


# -- faults -----------------------------------------------------------------------------------------------------------------------------


def answer(headers: Any, **changes: Any) -> bytes:
    n = int(headers["Samples"])
    return json.dumps({"id": headers["Idempotency-Key"], "scores": [0.5] * n, **changes}).encode()


SAID: dict[str, tuple[str, Any]] = {
    "500": ("answers 500: it cannot", lambda headers, content: 500),
    "400": ("answers 400: it cannot", lambda headers, content: 400),
    "drops": ("disconnected", lambda headers, content: None),
    "nothing": ("answers with something that is not JSON", lambda headers, content: b""),
    "garbage": ("answers with something that is not JSON", lambda headers, content: b"\xff{" * 20),
    "list": ("answers with something that is not a JSON object", lambda headers, content: b"[0.5]"),
    "endless": ("answers more than 65792 bytes", lambda headers, content: b"[" * 70_000),
    "short": ("answers 0 scores for 1 sample", lambda headers, content: answer(headers, scores=[])),
    "none": ("answers no list of scores for 1 sample", lambda headers, content: answer(headers, scores=None)),
    "NaN": ("not a finite number: nan at 0", lambda headers, content: answer(headers, scores=[math.nan])),
    "huge": ("not a finite number: 1000", lambda headers, content: answer(headers, scores=[10**400])),
    "text": ("not a finite number: '0.5'", lambda headers, content: answer(headers, scores=["0.5"])),
    "bool": ("not a finite number: True", lambda headers, content: answer(headers, scores=[True])),
    "another's": ("answers another request: b", lambda headers, content: answer(headers, id="b")),
    "nobody's": ("answers another request: None", lambda headers, content: answer(headers, id=None)),
}


@pytest.mark.parametrize("fault", SAID)
def test_an_answer_that_is_none_is_asked_for_again_then_masked_or_the_run_stops(fault: str) -> None:
    text, says_it = SAID[fault]
    asked: list[bytes] = []

    def server(headers: Any, content: bytes) -> Any:
        asked.append(content)
        return says_it(headers, content) if len(asked) <= 6 or fault == "400" else answer(headers)

    with says(server, ABOUT) as address:
        reward = remote(address, retry_attempts=3)
        reward.rewards[0].config.max_missing = 1.0
        assert scored(reward, [numbered(1)]).isnan().all()
        assert len(set(asked)) == 1 and len(asked) == (1 if fault == "400" else 3), "the same bytes each time"
        assert text in reward.counts.cause["it"] and reward.finish_epoch()["missing/it"] == 1
        with pytest.raises(RewardError, match="reward 'it': on_failure: stop: http") as stopped:
            scored(remote(address, retry_attempts=3, on_failure="stop"), [numbered(1)])
        assert text in str(stopped.value) and "\n" not in str(stopped.value)
        if fault != "400":
            assert scored(remote(address), [numbered(1)]).tolist() == [0.5], "and it is forgotten when the server is well"


def test_a_server_that_is_slow_or_busy_or_dies_is_waited_for_until_the_deadline() -> None:
    held = threading.Event()
    with says(lambda headers, content: held.wait(60) and None, ABOUT) as address:
        reward = remote(address, retry_attempts=2)
        reward.rewards[0].model.link.timeout = 0.05
        scored(reward, [numbered(1)])
        assert "does not answer in 0.05 s" in reward.counts.cause["it"]
        one = RewardArguments(name="it", reward_model="remote", extra_kwargs={"server_url": address, "deadline": 0.1, "max_concurrent": 1})
        _, unsent = Link(one).request("/score/reads", [(body(), "a", 2)] * 2)
        assert isinstance(unsent, Failed) and "the request had no place" in unsent.reason, "the deadline counts from the call"
        held.set()
    scored(reward, [numbered(1)])
    assert "connection" in reward.counts.cause["it"].lower(), "nobody listens any more"
    with pytest.raises(RewardError, match="reward 'it' gave no score for 2 of 2 samples; at most 50% may be missing; its last error: http"):
        reward.finish_epoch()
    refusals = iter([503, 503, 503, 503])
    with says(lambda headers, content: next(refusals, None) or answer(headers), ABOUT) as address:
        assert scored(remote(address, retry_attempts=5), [numbered(1)]).tolist() == [0.5]


def test_a_request_that_is_cancelled_at_any_moment_is_in_nobodys_way() -> None:
    """As by its timeout. The pool of connections has one place here, and httpcore does not give back all that are cancelled."""

    async def cancelled(address: str) -> None:
        for steps in range(16):
            client = HTTPClient(address, {})
            task = asyncio.ensure_future(client.request("POST", address, 99, 60, content=b"x"))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            assert (await client.request("POST", address, 99, 5, content=b"x"))[:2] == (200, b"yes")
            await client._pool.aclose()

    one = httpx.Limits(max_connections=1)
    with says(lambda headers, content: b"yes") as address, pytest.MonkeyPatch.context() as patch:
        patch.setattr(httpx, "Limits", lambda: one)
        asyncio.run(cancelled(address))


def test_a_name_or_token_that_is_wrong_ends_the_run_whatever_is_masked() -> None:
    with says(lambda headers, content: 404, ABOUT) as address, pytest.raises(RewardError, match="reward 'it': http.* answers 404"):
        scored(remote(address), [numbered(1)])


def test_a_start_says_what_is_wrong_with_the_server_or_the_entry(served: str) -> None:
    for extra, text in (
        ({"server_url": "http://127.0.0.1:9"}, "server_url: .* does not answer .*start the server first"),
        ({"server_url": "gpu-host:8100"}, "server_url: 'gpu-host:8100' is not an address such as http://gpu-host:8100"),
        ({"server_url": served}, "reward is missing: .* has reads, ranks, bright, size; name one of them"),
        ({"server_url": served, "reward": "read"}, "reward: .* has no 'read'. Did you mean 'reads'"),
        ({"server_url": served, "reward": "ranks"}, "reward_model: 'ranks' of .* scores groups; write remote_group"),
        ({"server_url": served, "timeout": 0}, "timeout: wants a number of at least 0.001, got 0"),
        ({"server_url": served, "body": "pickle"}, "body: wants msgpack or multipart, got 'pickle'"),
        ({"server_url": served, "pictures": "gif"}, "pictures: wants raw or png or jpeg"),
        ({"server_url": served, "on_failure": "zero"}, "on_failure: wants mask or stop"),
        ({"server_url": served, "columns": "tags"}, "columns: wants a list of names"),
    ):
        with pytest.raises(UserError, match=f"reward 'it': {text}"):
            rewards("remote", **extra)
    with pytest.raises(UserError, match="server_url is missing"):
        load_rewards([RewardArguments(name="it", reward_model="remote")], None, Accelerator(cpu=True))


def test_a_start_says_that_a_server_still_loads_its_rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not that it does not answer; the next pause would end after `timeout`."""
    monkeypatch.setattr("flow_factory.rewards.link.pause", lambda k: 1e9)
    with service(entry()) as (address, queue):

        def loads() -> None:
            raise Refused(503, "the rewards are being loaded", 2)

        monkeypatch.setattr(queue, "require_ready", loads)
        with pytest.raises(UserError, match="server_url: http.* is not ready: .*the rewards are being loaded"):
            rewards("remote", server_url=address)


def injected(requests: int, seed: int, patience: float = 0.5) -> None:
    """So many requests by 16 at a time, one of four of which meets a fault: no score is another's, and none is computed twice."""
    faults: list[Faults] = []

    def wrap(app: Any) -> Faults:
        faults.append(Faults(app, seed, 1.4 * patience))
        return faults[0]

    luck, wrong, missing, each = random.Random(seed), 0, 0, 3
    numbers = luck.sample(range(1, 2**24), requests * each)
    with service(entry(batch_size=8), wrap=wrap) as (address, _):
        reward = remote(address, size=16 * each, max_concurrent=16, timeout=patience, retry_attempts=3)
        for k in range(0, len(numbers), 16 * each):
            asked = numbers[k : k + 16 * each]
            found = scored(reward, [numbered(one) for one in asked])
            missing += int(found.isnan().sum())
            wrong += sum(not score.isnan() and score.item() != one for score, one in zip(found, asked, strict=True))
    done = faults[0].done
    print(f"{requests} requests of {each} pictures, {done.total()} calls: {wrong} wrong, {missing} missing; {dict(done)}")
    assert wrong == 0 and done.total() >= requests
    assert missing < len(numbers) / 2 and (requests < 1000 or all(done[kind] for kind in Faults.KINDS)), (missing, done)
    assert set(Reads.seen) <= set(numbers) and max(Reads.seen.values()) == 1


@pytest.mark.exhaustive
def test_no_sample_has_the_score_of_another_among_faults() -> None:
    injected(160, seed=1)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_no_sample_of_two_thousand_requests_has_the_score_of_another() -> None:
    injected(2000, seed=2)


@pytest.mark.exhaustive
def test_no_sample_of_ten_thousand_requests_has_the_score_of_another() -> None:
    injected(10_000, seed=3, patience=2.0)


@pytest.mark.parametrize("scores", [[0.1, None], [1, -2.5]])
def test_a_right_answer_is_taken(scores: list[Any]) -> None:
    assert scores_in(json.dumps({"id": "a", "scores": scores, "more": 1}).encode(), "a", 2) == scores
    assert scores_in(json.dumps({"rewards": scores}).encode(), None, 2) == scores
    with pytest.raises(Wrong, match="answers an error: oh"):
        scores_in(b'{"rewards": [1, 2], "error": "oh"}', None, 2)


# -- its config -------------------------------------------------------------------------------------------------------------------------


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


# -- in a run, and as a command ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_with_a_remote_reward_is_the_run_with_that_reward(tmp_path: Path, served: str) -> None:
    """And one whose server dies in the middle ends with a line, after the last whole epoch was saved."""
    metrics = {}
    there = ["rewards.reward_model=remote", f"rewards.server_url={served}", "rewards.reward=size"]
    for name, overrides in (("here", []), ("there", there)):
        run = tiny(tmp_path, f"run_name={name}", *overrides)
        run()
        lines = logged(tmp_path / "save" / name)
        metrics[name] = [{k: v for k, v in line.items() if "time" not in k and "seconds" not in k and "/s" not in k} for line in lines]
    assert metrics["here"] == metrics["there"]

    with service() as (address, _):
        key = [f"rewards.server_url={address}", "rewards.reward_model=remote", "rewards.name=reads", "rewards.retry_attempts=2"]
        run = tiny(tmp_path, "run_name=dies", "eval.eval_freq=0", "log.save_freq=1", "log.save_model_only=false", *key)
        link = run.context.rewards.rewards[0].model.link
        well = link.request

        def ask(path: str, questions: Any) -> Any:
            if (tmp_path / "save" / "dies" / "checkpoints" / "epoch_1").is_dir():
                link.url = "http://127.0.0.1:9"
            return well(path, questions)

        link.request = ask
        with pytest.raises(RewardError, match="reward 'reads' gave no score for .* its last error: http://127.0.0.1:9"):
            run()
    assert (tmp_path / "save" / "dies" / "checkpoints" / "epoch_1" / "state").is_dir()


@pytest.mark.slow
@pytest.mark.exhaustive
def test_the_command_serves_by_several_processes_outlives_one_and_ends_gracefully(tmp_path: Path) -> None:
    (tmp_path / "rewards.yaml").write_text("rewards:\n  reward_model: tests.tiny.reward_server:Reads\n  name: reads\n")
    command = [sys.executable, "-m", "flow_factory.commands.reward", "serve", "rewards.yaml", "--port", "0", "--workers", "2"]
    process = subprocess.Popen([*command, "--devices", "cpu"], cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        address = re.search(r"http://127.0.0.1:\d+", line)[0]  # type: ignore[index]
        assert line.startswith("serving reads at ") and WEB.get(f"{address}/ready").status_code in (200, 503)
        reward = remote(address, max_concurrent=4)
        numbers = [numbered(k) for k in range(1, 41)]
        assert scored(reward, numbers).tolist() == list(range(1, 41))
        workers = psutil.Process(process.pid).children(recursive=True)
        scoring = [one for one in workers if "spawn_main" in " ".join(one.cmdline())]
        assert len(scoring) == 2
        for one in scoring:
            one.kill()
        reward.rewards[0].model.link.tries = 1000
        assert scored(reward, numbers).tolist() == list(range(1, 41)), "they are started again"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
    done = subprocess.run([*command, "--host", "256.0.0.1"], cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 2 and re.fullmatch(r"error: server.host, server.port: cannot listen on 256.0.0.1:0: .*\n", done.stderr)
    if not torch.cuda.is_available():
        done = subprocess.run([*command, "--devices", "cuda:7"], cwd=tmp_path, env=environment(), capture_output=True, text=True)
        assert done.returncode == 2 and "error: server.devices: cuda:7: this machine has no cuda device; write auto" in done.stderr
    (tmp_path / "rewards.yaml").write_text("rewards:\n  reward_model: CLIP\n  model_name_or_path: ./none\n")
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 2 and "error: reward 'clip': model_name_or_path: './none' is neither a folder" in done.stderr, done.stderr
