"""Rewards in a process of the service: bodies in, scores out. The scores of a body do not depend on the other bodies of its batch."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator

from flow_factory.hparams import RewardArguments
from flow_factory.rewards.answers import AnswerError, scores_of
from flow_factory.rewards.isolation import kept, within
from flow_factory.rewards.loading import LoadedReward, load_each
from flow_factory.rewards.media import convert, convert_conditions
from flow_factory.rewards.needs import MEDIA
from flow_factory.rewards.service.reading import ScoringRequest, unpacked
from flow_factory.rewards.wire import DEPTHS, JSON, Body, WireError
from flow_factory.utils.counting import counted
from flow_factory.utils.errors import UserError
from flow_factory.utils.user_code import user_errors


class Reply(NamedTuple):
    """An HTTP status, and the JSON body of the response."""

    status: int
    content: dict[str, Any]


def refusal(status: int, text: object) -> Reply:
    """Why there are no scores."""
    return Reply(status, {"error": " ".join(str(text).split())})


class Scorer:
    """The rewards of a config, on one device.

    Args:
        device: `auto` leaves it to the entries.

    Raises:
        UserError: a reward does not load.
    """

    def __init__(self, entries: Sequence[RewardArguments], device: str = "auto"):
        own = entries if device == "auto" else [replace(entry, device=torch.device(device)) for entry in entries]
        accelerator = Accelerator(cpu=not torch.cuda.is_available() or device == "cpu")
        (rewards, _) = load_each(own, [], accelerator)
        self.rewards = {reward.name: reward for reward in rewards}

    def describe(self) -> dict[str, Any]:
        """Name -> description for clients: the columns that a reward takes (null: any) and needs, and its batch size."""
        return {
            name: {
                "reward_model": j.config.reward_model,
                "groupwise": j.groupwise,
                "takes": None if j.needs.open else list(j.needs.named),
                "media": list(j.needs.media),
                "required": list(j.needs.required),
                "batch_size": j.config.batch_size,
            }
            for name, j in self.rewards.items()
        }

    def score(self, name: str, bodies: Sequence[Body]) -> list[Reply]:
        """A reply to each body. Samples of pointwise rewards are scored together. If that fails, each body is scored alone."""
        reward = self.rewards[name]
        read = [self._read(reward, body) for body in bodies]
        replies: dict[int, Reply] = {k: one for k, one in enumerate(read) if isinstance(one, Reply)}
        alike: dict[Any, list[int]] = {}
        for k, one in enumerate(read):
            if isinstance(one, ScoringRequest):
                alike.setdefault(k if reward.groupwise else frozenset(one.fields), []).append(k)
        for group in alike.values():
            replies |= dict(zip(group, self._together(reward, [read[k] for k in group]), strict=True))  # type: ignore[misc]
        return [self._answer(bodies[k], read[k], replies[k]) for k in range(len(bodies))]

    def _read(self, reward: LoadedReward, body: Body) -> ScoringRequest | Reply:
        try:
            request = unpacked(body.kind, body.content)
        except WireError as error:
            return refusal(400, error)
        lacking = [field for field in reward.needs.required if field not in request.fields and field not in MEDIA[:2]]
        if reward.needs.media and not set(reward.needs.media) & request.fields.keys():
            lacking.append(" or ".join(reward.needs.media))
        if lacking:
            return refusal(422, f"reward {reward.name!r} needs {', '.join(lacking)}, and the request has {', '.join(request.fields)}")
        return request

    def _together(self, reward: LoadedReward, requests: Sequence[ScoringRequest]) -> list[Reply]:
        names, counts = requests[0].fields, [request.n for request in requests]
        fields = {name: [value for request in requests for value in request.fields[name]] for name in names}
        n = sum(counts)
        size = n if reward.groupwise else reward.config.batch_size
        try:
            parts = [self._call(reward, {k: v[a : a + size] for k, v in fields.items()}, min(size, n - a)) for a in range(0, n, size)]
        except UserError as error:
            if len(requests) > 1:
                return [reply for request in requests for reply in self._together(reward, [request])]
            return [refusal(500, error)]
        scores = [score for part, _ in parts for score in part]
        message = next((message for _, message in parts if message), "")
        own = iter(scores)
        return [Reply(200, {"scores": [next(own) for _ in range(count)], "error": message or None}) for count in counts]

    @torch.no_grad()
    def _call(self, reward: LoadedReward, fields: dict[str, list[Any]], n: int) -> tuple[list[float | None], str]:
        """The scores, None for a missing one, and the errors that the reward reported.

        Raises:
            UserError: it raised, or returned something other than scores.
        """
        device = reward.model.device if reward.model.use_tensor_inputs else None
        given = {name: [_form(name, one, device) for one in values] for name, values in fields.items() if reward.needs.takes(name)}
        doing, module = f"reward {reward.name!r} failed on {counted(n, 'sample')}", type(reward.model).__module__
        with kept(), user_errors(doing, module):
            output = within(reward.config.max_seconds, lambda: reward.model(**given), doing, module)
        try:
            scores, message = scores_of(output, n)
        except AnswerError as error:
            raise UserError(f"reward {reward.name!r} {error}") from error
        return [None if score != score else score for score in scores.tolist()], message

    @staticmethod
    def _answer(body: Body, read: ScoringRequest | Reply, reply: Reply) -> Reply:
        """The reply with the id from the body, in the protocol of the request."""
        if reply.status != 200 or not isinstance(read, ScoringRequest):
            return reply
        if body.kind.lower().startswith(JSON):
            return Reply(200, {"rewards": reply.content["scores"]})
        return Reply(200, {"id": read.id, **reply.content})


def _form(name: str, value: Any, device: torch.device | None) -> Any:
    """A sample's field in the form that the reward takes."""
    if device is None or name not in DEPTHS:
        return value
    if name == "audio":
        return torch.from_numpy(value).to(device)
    return convert_conditions(value, device) if name.startswith("condition") else convert(value, device)
