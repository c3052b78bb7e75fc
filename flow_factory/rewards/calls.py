"""One call of a reward on a batch of samples, its result, and the counts of failures."""

import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from flow_factory.rewards.answers import AnswerError, scores_of
from flow_factory.rewards.inputs import Sample, arguments
from flow_factory.rewards.isolation import kept, within
from flow_factory.rewards.loading import LoadedReward
from flow_factory.utils.counting import counted
from flow_factory.utils.errors import RewardError
from flow_factory.utils.user_code import user_errors


@dataclass
class Counts:
    """The counts of each reward since the last report."""

    scored: Counter[str] = field(default_factory=Counter)
    missing: Counter[str] = field(default_factory=Counter)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    errors: Counter[str] = field(default_factory=Counter)
    """The number of its error messages; `cause` is the last one."""
    cause: dict[str, str] = field(default_factory=dict)


class Answer(NamedTuple):
    """The result of one call."""

    scores: Tensor
    """(n,) float32 on the CPU, NaN where one is missing."""
    error: str
    """The error message; "" without an error."""
    seconds: float


def call_reward(reward: LoadedReward, batch: Sequence[Sample]) -> Answer:
    """Calls a reward once. For its errors see `ScoringStream.add`."""
    start = time.perf_counter()
    given = arguments(reward, batch)
    rows = ", ".join(str(k) for k in sorted({s.row.id for s in batch}))
    doing = f"reward {reward.name!r} failed on {counted(len(batch), 'sample')} of row {rows}"
    module, limit = type(reward.model).__module__, reward.config.max_seconds
    with kept(), user_errors(doing, module):
        output = within(limit, lambda: reward.model(**given), doing, module)
    try:
        scores, message = scores_of(output, len(batch))
    except AnswerError as error:
        raise RewardError(f"reward {reward.name!r} {error}") from error
    return Answer(scores, message, time.perf_counter() - start)


def next_calls(reward: LoadedReward, waiting: list[Sample], groups: Sequence[list[Sample]], last: bool) -> list[list[Sample]]:
    """The batches of a reward's next calls. Their samples are removed from `waiting`; see `ScoringStream`."""
    if reward.groupwise:
        return [*groups]
    waiting += [sample for group in groups for sample in group]
    size = reward.config.batch_size
    full = len(waiting) if last else len(waiting) // size * size
    calls = [waiting[k : min(k + size, full)] for k in range(0, full, size)]
    del waiting[:full]
    return calls
