"""A server that fails, is slow, or is wrong: every sample has its own score, or none, whatever happens in between."""

import asyncio
import json
import math
import random
import threading
from typing import Any

import httpx
import pytest
from accelerate import Accelerator

from flow_factory.hparams import RewardArguments
from flow_factory.rewards.exchange import HTTPClient
from flow_factory.rewards.failures import Failed
from flow_factory.rewards.link import Link
from flow_factory.rewards.scoring import load_rewards
from flow_factory.rewards.service.request_queue import Refused
from flow_factory.utils.errors import RewardError, UserError
from tests.rewards.remote import ABOUT, body, remote, scored
from tests.rewards.reward_set import rewards
from tests.tiny.reward_server import Faults, Reads, entry, numbered, says, service


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
