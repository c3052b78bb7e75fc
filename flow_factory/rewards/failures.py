"""Samples that a reward could not score, and the failures of a server after which a request is repeated."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import httpx

from flow_factory.hparams import RewardArguments
from flow_factory.rewards.base import RewardModelOutput
from flow_factory.utils.errors import RewardError, UserError
from flow_factory.utils.user_code import short

HOPELESS = (401, 403, 404)
"""Status codes of a wrong key, permission or name: a repetition is useless."""
AGAIN = (408, 409, 425, 429)
"""Status codes after which a request is repeated, as after any from 500 on."""
PAUSE, LONGEST = 0.5, 8.0
"""Seconds before the second try, doubled each time up to the largest; each is multiplied by a random factor from 0.5 to 1.5."""


@dataclass(frozen=True)
class Failed:
    """The reason why there is no answer."""

    reason: str


Verdict = float | Failed


def pause(k: int, requested: float = 0.0) -> float:
    """Seconds before the k-th repetition, counted from 1; at least as many as the server has asked for."""
    by_chance = random.Random()
    return max(min(PAUSE * 2.0 ** min(k - 1, 30), LONGEST) * by_chance.uniform(0.5, 1.5), requested * by_chance.uniform(1.0, 1.5))


def worth_again(status: int) -> bool:
    """Whether the same request may be answered later."""
    return status in AGAIN or status >= 500


def why(error: httpx.HTTPError) -> str:
    """The reason of a failed connection in one line."""
    return short(error) or type(error).__name__


def does_not_answer(name: str, key: str, url: str, error: Exception, limit: float) -> UserError:
    """The line about a server that a start has asked for `limit` seconds.

    Args:
        name, key: the reward, and its key with the server's address.
    """
    reason = why(error) if isinstance(error, httpx.HTTPError) else short(error) or f"no answer in {limit:g} s"
    return UserError(f"reward {name!r}: {key}: {url} does not answer ({reason}); start the server first")


def refused(name: str, url: str, status: int, content: bytes) -> Failed:
    """The reason why there is no answer, from one with another status than 200.

    Raises:
        RewardError: the server refuses all requests, see `HOPELESS`.
    """
    reason = f"{url} answers {status}: {short(content.decode(errors='replace'))}"
    if status in HOPELESS:
        raise RewardError(f"reward {name!r}: {reason}")
    return Failed(reason)


def number(config: RewardArguments, key: str, default: float, least: float) -> float:
    """A number among the entry's own keys.

    Raises:
        UserError: the value is not a number, or below `least`.
    """
    value = config.extra_kwargs.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= least:
        raise UserError(f"reward {config.name!r}: {key}: wants a number of at least {least:g}, got {value!r}")
    return value


def address(config: RewardArguments, key: str, default: str, example: str) -> str:
    """The address of a server, without a slash at its end.

    Raises:
        UserError: it is not an http address.
    """
    url = str(config.extra_kwargs.get(key, default)).rstrip("/")
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        parsed = httpx.URL("")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise UserError(f"reward {config.name!r}: {key}: {url!r} is not an address such as {example}")
    return url


def require_policy(config: RewardArguments) -> None:
    """Raises:
    UserError: `on_failure` is neither mask nor stop.
    """
    if (policy := config.extra_kwargs.get("on_failure", "mask")) not in ("mask", "stop"):
        raise UserError(f"reward {config.name!r}: on_failure: wants mask or stop, got {policy!r}")


def reward_output(config: RewardArguments, scores: Sequence[Verdict]) -> RewardModelOutput:
    """Scores, NaN where the judge failed.

    Raises:
        RewardError: it failed, and `on_failure` is stop.
    """
    reasons = [s.reason for s in scores if isinstance(s, Failed)]
    if reasons and config.extra_kwargs.get("on_failure", "mask") == "stop":
        raise RewardError(f"reward {config.name!r}: on_failure: stop: {reasons[0]}")
    return RewardModelOutput([math.nan if isinstance(s, Failed) else s for s in scores], {"error": list(dict.fromkeys(reasons))})
