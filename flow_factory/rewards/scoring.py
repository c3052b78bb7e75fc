"""The scoring of groups of samples by the rewards of a run. A failed score is missing and counted, and never replaced by a number."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from flow_factory.hparams import RewardArguments
from flow_factory.rewards.calls import Answer, Counts
from flow_factory.rewards.executors import executors_of
from flow_factory.rewards.loading import LoadedReward, compares, load_each
from flow_factory.rewards.stream import ScoringStream
from flow_factory.types import Row
from flow_factory.utils.errors import RewardError, UserError, of_all

logger = logging.getLogger(__name__)


def load_rewards(
    train: Sequence[RewardArguments],
    evaluation: Sequence[RewardArguments] | None,
    accelerator: Accelerator,
    eval_group_size: int | None = None,
) -> tuple["RewardSet", "RewardSet"]:
    """(training rewards, evaluation rewards). With None the evaluation uses the training rewards. See `load_each`.

    Args:
        eval_group_size: the largest number of samples of a row in an evaluation. With 1 no groupwise rewards are loaded for it.

    Raises:
        UserError: two entries share a name.
    """
    evaluation = train if evaluation is None else evaluation
    if eval_group_size == 1:
        evaluation = [entry for entry in evaluation if not compares(entry)]
    rewards = load_each(train, evaluation, accelerator)
    return RewardSet(rewards[0], accelerator), RewardSet(rewards[1], accelerator)


class RewardSet:
    """The rewards of one purpose, training or evaluation. See `load_rewards`.

    Attributes:
        names: the names of the R rewards, in the order of the columns of scores.
        weights: the weights of the rewards for `dataset`, in the same order.
        executors: the executors of asynchronous rewards, see `executors_of`.
    """

    def __init__(self, rewards: Sequence[LoadedReward], accelerator: Accelerator, dataset: str = ""):
        self.rewards, self.accelerator, self.dataset = tuple(rewards), accelerator, dataset
        self.names = tuple(j.name for j in rewards)
        self.weights = tuple(j.weight(dataset) for j in rewards)
        if twice := [name for name, count in Counter(self.names).items() if count > 1]:
            raise UserError(f"two rewards are named {twice[0]!r}; give each its own name")
        self.counts = Counts()
        self.executors = executors_of(self.rewards)

    def of(self, dataset: str, group_size: int | None = None) -> "RewardSet":
        """The rewards that score a data set's samples, with their weights for it.

        Args:
            group_size: the number of samples of a row. With 1 groupwise rewards are left out.
        """
        mine = [j for j in self.rewards if j.scores(dataset) and not (group_size == 1 and j.groupwise)]
        return RewardSet(mine, self.accelerator, dataset)

    @property
    def beside(self) -> bool:
        """Whether all rewards are asynchronous."""
        return all(id(reward.model) in self.executors for reward in self.rewards)

    @property
    def groupwise(self) -> bool:
        """Whether any reward is groupwise."""
        return any(reward.groupwise for reward in self.rewards)

    @property
    def batch(self) -> int:
        """The number of samples that fills a call of every pointwise reward."""
        return max((reward.config.batch_size for reward in self.rewards), default=1)

    def check_columns(self, rows: Sequence[Row]) -> None:
        """Checks rows when the data set is read, see `Needs.require_columns`."""
        for row in rows:
            for reward in self.rewards:
                reward.needs.require_columns(row)

    def score(self, rows: Sequence[Row], media: Sequence[Sequence[Any]], look: Callable[[], None] = lambda: None) -> list[Tensor]:
        """Scores of whole groups: for each row (n, R) float32 on the CPU, NaN where a score is missing. See `ScoringStream.add`."""
        stream = self.stream(look)
        stream.add(rows, media, last=True)
        return list(stream.scores().split([len(group) for group in media])) if media else []

    def stream(self, look: Callable[[], None] = lambda: None) -> "ScoringStream":
        """A stream for samples that arrive group by group."""
        return ScoringStream(self, look)

    @contextmanager
    def dropping(self) -> Iterator[None]:
        """Cancels waiting calls if the code inside raises."""
        try:
            yield
        except BaseException:
            for executor in self.executors.values():
                executor.drop()
            raise

    def count(self, reward: LoadedReward, answers: Sequence[Answer]) -> None:
        """Adds results to the report. It replaces `counts` by a new object."""
        self.counts = counts = deepcopy(self.counts)
        for scores, message, seconds in answers:
            counts.scored[reward.name] += len(scores)
            counts.missing[reward.name] += int(scores.isnan().sum())
            counts.seconds[reward.name] += seconds
            if message:
                counts.cause[reward.name] = message
                counts.errors[reward.name] += 1

    def finish_epoch(self) -> dict[str, float]:
        """Missing scores and seconds of each reward since the last call, over all processes (so all must call); then counts from 0.

        Returns:
            `missing/<name>`, a count, and `seconds/<name>`, the mean over processes.

        Raises:
            RewardError: a reward missed more than its `max_missing`.
        """
        if not self.names:
            return {}
        mine, self.counts = self.counts, Counts()
        local = [[mine.scored[n], mine.missing[n], mine.seconds[n], mine.errors[n]] for n in self.names]
        total = self.accelerator.reduce(torch.tensor(local, dtype=torch.float32, device=self.accelerator.device), reduction="sum")
        causes = {k: v for one in gather_object([mine.cause]) for k, v in one.items()} if total[:, 3].any() else {}
        report: dict[str, float] = {}
        for reward, (scored, missing, seconds, errors) in zip(self.rewards, total.tolist(), strict=True):
            name, most = reward.name, reward.config.max_missing
            if errors:
                logger.warning("reward %r reported an error %.0f times in these %.0f samples, last: %s", name, errors, scored, causes[name])
            if missing > most * scored:
                cause = f"; its last error: {causes[name]}" if name in causes else ""
                few = f"at most {most:.0%} may be missing{cause}"
                raise of_all(RewardError(f"reward {name!r} gave no score for {missing:.0f} of {scored:.0f} samples; {few}"))
            report |= {f"missing/{name}": missing, f"seconds/{name}": seconds / self.accelerator.num_processes}
        return report
