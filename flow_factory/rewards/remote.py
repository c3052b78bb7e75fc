"""A reward on a server: `ff-reward serve` on another machine, or a server of the older public protocol.

The older protocol (`POST /compute` with base64 images, `GET /health`) has no ids: only the connection tells which request an answer
belongs to.
"""

import secrets
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from accelerate import Accelerator

from flow_factory.hparams import RewardArguments
from flow_factory.rewards.base import BaseRewardModel, GroupwiseRewardModel, PointwiseRewardModel, RewardModelOutput
from flow_factory.rewards.failures import Failed, Verdict, require_policy, reward_output
from flow_factory.rewards.link import Link
from flow_factory.rewards.needs import Needs
from flow_factory.rewards.wire import DEPTHS, JSON, MSGPACK, MULTIPART, Body, WireError, packed, request_of
from flow_factory.types import Row
from flow_factory.utils.errors import RewardError, UserError
from flow_factory.utils.registry import nearest

BODIES = {"msgpack": MSGPACK, "multipart": MULTIPART}
PICTURES = ("raw", "png", "jpeg")
MISSING = Failed("the server has no score")


class RemoteReward(BaseRewardModel):
    """Base of both. Keys: `server_url`; `reward`, its name on a server with several; `token`, if the server needs one.

    `timeout`: seconds of a try (120); `retry_attempts`: number of tries (5), with growing pauses; `deadline`: seconds in all (600), also
    for a busy server, and while `max_concurrent` other requests are sent. After it the samples are missing, or the run stops
    (`on_failure`: mask or stop).
    `body`: msgpack or multipart; `pictures`: raw, png or jpeg (jpeg is the smallest, and lossy); `columns`: the columns to send, which
    every row must have. `max_concurrent`: the number of concurrent requests for a pointwise reward's batch (4).
    """

    required_fields = ("prompt", "image", "video")
    extra_keys = (
        "server_url", "reward", "token", "timeout", "retry_attempts", "deadline", "max_concurrent", "body", "pictures", "columns",
        "on_failure",
    )  # fmt: skip
    loads_weights = True
    changes_inputs = False
    no_gradient = "it runs on a server"
    groupwise: bool

    @classmethod
    def require_files(cls, config: RewardArguments, now: bool) -> None:
        cls.settings(config)
        link = Link(config)
        if now:
            cls.found(config, link.describe())

    @classmethod
    def row_check(cls, config: RewardArguments) -> Callable[[Row], None]:
        return Needs(config.name, tuple(cls.settings(config)[2] or ()), (), (), True).require_columns

    @staticmethod
    def settings(config: RewardArguments) -> tuple[str, str, list[str] | None]:
        """(kind of body, form of pictures, columns).

        Raises:
            UserError: one of the entry's own keys is wrong.
        """
        require_policy(config)
        extra = config.extra_kwargs
        for key, known in (("body", tuple(BODIES)), ("pictures", PICTURES)):
            if extra.get(key, known[0]) not in known:
                raise UserError(f"reward {config.name!r}: {key}: wants {' or '.join(known)}, got {extra[key]!r}")
        columns = extra.get("columns")
        if columns is not None and not (isinstance(columns, list | tuple) and all(isinstance(c, str) for c in columns)):
            raise UserError(f"reward {config.name!r}: columns: wants a list of names, got {columns!r}")
        return BODIES[extra.get("body", "msgpack")], extra.get("pictures", "raw"), None if columns is None else list(columns)

    @classmethod
    def found(cls, config: RewardArguments, there: dict[str, Any] | None) -> tuple[str, dict[str, Any]] | None:
        """(name, description) of the entry's reward on the server; None with the older protocol.

        Raises:
            UserError: the server does not have it, or it is of the other kind.
        """
        if there is None:
            return None
        where, url, names = f"reward {config.name!r}: ", config.extra_kwargs["server_url"], ", ".join(there)
        name = config.extra_kwargs.get("reward", next(iter(there)) if len(there) == 1 else None)
        if name is None:
            raise UserError(f"{where}reward is missing: {url} has {names}; name one of them")
        if name not in there:
            raise UserError(f"{where}reward: {url} has no {name!r}.{nearest(str(name), list(there))} It has {names}")
        if there[name].get("groupwise", False) != cls.groupwise:
            right, kind = ("remote_group", "groups") if there[name]["groupwise"] else ("remote", "samples")
            raise UserError(f"{where}reward_model: {name!r} of {url} scores {kind}; write {right}")
        return name, there[name]

    def __init__(self, config: RewardArguments, accelerator: Accelerator):
        super().__init__(config, accelerator)
        self.body, self.pictures, self.columns = self.settings(config)
        self.link = Link(config)
        self.there = self.found(config, self.link.describe())
        if self.there is None and self.pictures == "raw":
            self.pictures = "png"

    def takes(self, field: str) -> bool:
        """Whether this input is sent: an input that the remote reward takes, or a column in `columns`."""
        if field == "prompt":
            return True
        if self.columns is not None and field not in (*DEPTHS, "audio_sample_rate"):
            return field in self.columns
        takes = None if self.there is None else self.there[1].get("takes")
        return takes is None or field in takes

    def __call__(
        self,
        prompt: list[str],
        image: list[Any] | None = None,
        video: list[Any] | None = None,
        audio: list[Any] | None = None,
        condition_images: list[Any] | None = None,
        condition_videos: list[Any] | None = None,
        **columns: Any,
    ) -> RewardModelOutput:
        media = {"image": image, "video": video, "audio": audio}
        media |= {"condition_images": condition_images, "condition_videos": condition_videos}
        given = {k: v for k, v in {**columns, **media}.items() if v is not None and self.takes(k)}
        n = len(prompt)
        parts = 1 if self.groupwise else min(self.link.concurrent, n)
        cuts = [(n * k // parts, n * (k + 1) // parts) for k in range(parts)]
        questions = [self._question({k: v[a:b] for k, v in {**given, "prompt": prompt}.items()}, b - a) for a, b in cuts]
        path = "/compute" if self.there is None else f"/score/{quote(self.there[0], safe='')}"
        verdicts: list[Verdict] = []
        for answer, (_, _, many) in zip(self.link.request(path, questions), questions, strict=True):
            verdicts += [answer] * many if isinstance(answer, Failed) else [MISSING if s is None else s for s in answer]
        return reward_output(self.config, verdicts)

    def _question(self, fields: dict[str, list[Any]], n: int) -> tuple[Body, str | None, int]:
        id = None if self.there is None else secrets.token_hex(16)
        try:
            return packed(request_of(id or "", fields, self.pictures), JSON if self.there is None else self.body), id, n
        except WireError as error:
            raise RewardError(f"reward {self.config.name!r}: {error}; leave it out by columns: [...]") from error


class RemotePointwiseRewardModel(RemoteReward, PointwiseRewardModel):
    """A sample's score depends on that sample alone."""

    groupwise = False


class RemoteGroupwiseRewardModel(RemoteReward, GroupwiseRewardModel):
    """A sample's score depends on its group, which is one request."""

    groupwise = True
