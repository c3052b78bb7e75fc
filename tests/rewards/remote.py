"""Remote rewards of the tests: what is asked of a server, and how."""

from typing import Any

import httpx
import torch
from torch import Tensor

from flow_factory.rewards.scoring import RewardSet
from flow_factory.rewards.wire import JSON, MSGPACK, Body, packed, request_of
from flow_factory.types import Row
from tests.rewards.reward_set import rewards
from tests.tiny.reward_server import numbered

WEB = httpx.Client(timeout=60, verify=False)
RANKS = "tests.tiny.reward_server:Ranks"
ABOUT = {"reads": {"groupwise": False, "takes": None}}


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
