"""Calls the rewards of a run on groups of samples. A failed score is missing and counted; it never becomes a number."""

import inspect
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from flow_factory.errors import UserError
from flow_factory.hparams import RewardArguments
from flow_factory.registry import nearest
from flow_factory.rewards import REWARDS
from flow_factory.rewards.base import GroupwiseRewardModel, PointwiseRewardModel, RewardModel, RewardModelOutput
from flow_factory.rewards.media import condition_images, condition_videos, convert, convert_conditions, kind_of
from flow_factory.types import Row

MEDIA = ("image", "video")
CONDITIONS: dict[str, Callable[[Row], list[Any]]] = {"condition_images": condition_images, "condition_videos": condition_videos}
GIVEN = ("prompt", "negative_prompt", *MEDIA, *CONDITIONS)


class RewardError(RuntimeError):
    """A reward failed, returned what is no score, or missed too many; the message names it."""


@dataclass(frozen=True)
class Judge:
    """A loaded reward under one entry of the YAML."""

    config: RewardArguments
    model: RewardModel

    @property
    def name(self) -> str:
        return self.config.name

    def takes(self, field: str) -> bool:
        """Whether the reward's call accepts this argument."""
        parameters = inspect.signature(type(self.model).__call__).parameters
        return field in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


class Sample(NamedTuple):
    """One picture or video, and all that a reward may ask about it."""

    row: Row
    media: Any
    fields: Mapping[str, Any]


def load_rewards(
    train: Sequence[RewardArguments], evaluation: Sequence[RewardArguments] | None, accelerator: Accelerator
) -> tuple["RewardSet", "RewardSet"]:
    """(training rewards, evaluation rewards); None evaluates with the training rewards.

    A model that entries agree on, all but their name, weight and batching, is loaded once.

    Raises:
        UnknownName: no such reward.
        UserError: the class is no reward, an entry has a key that it does not take, or two entries share a name.
    """
    models: dict[tuple, RewardModel] = {}

    def judge(config: RewardArguments) -> Judge:
        identity = (REWARDS.path(config.reward_model), config.dtype, config.device, repr(sorted(config.extra_kwargs.items())))
        if identity not in models:
            models[identity] = _load(config, accelerator)
        return Judge(config, models[identity])

    training = [judge(config) for config in train]
    evaluating = training if evaluation is None else [judge(config) for config in evaluation]
    return RewardSet(training, accelerator), RewardSet(evaluating, accelerator)


def _load(config: RewardArguments, accelerator: Accelerator) -> RewardModel:
    cls = REWARDS[config.reward_model]
    if not (isinstance(cls, type) and issubclass(cls, PointwiseRewardModel | GroupwiseRewardModel)):
        raise UserError(f"reward {config.name!r}: {config.reward_model!r} is neither a PointwiseRewardModel nor a GroupwiseRewardModel")
    if cls.extra_keys is not None:
        for key in config.extra_kwargs.keys() - set(cls.extra_keys):
            known = f"it takes {', '.join(cls.extra_keys)}" if cls.extra_keys else "it takes none of its own"
            raise UserError(
                f"reward {config.name!r} has no key {key!r}.{nearest(key, list(cls.extra_keys))} Beside the common ones {known}"
            )
    return cls(config, accelerator)


def require_columns(reward: str, fields: Sequence[str], rows: Sequence[Row]) -> None:
    """Raises UserError where a row lacks a column or condition files that a reward requires.

    Args:
        fields: the reward's `required_fields`; those that come from elsewhere are passed over.
    """
    for name, files in (("condition_images", lambda row: row.images), ("condition_videos", lambda row: row.videos)):
        for row in rows if name in fields else ():
            if not files(row):
                kind = name.removeprefix("condition_")
                raise UserError(
                    f"reward {reward!r} needs {name.replace('_', ' ')}, and row {row.id} ({row.source}) has none: "
                    f"name them in the data set's column {kind[:-1]!r} or {kind!r}"
                )
    for column in (f for f in fields if f not in GIVEN):
        for row in rows:
            if row.columns.get(column) is None:
                raise UserError(
                    f"reward {reward!r} needs the column {column!r}, and row {row.id} (counted from 0: {row.prompt[:60]!r}) "
                    f"has none.{nearest(column, list(row.columns))}"
                )


class RewardSet:
    """The rewards of one purpose, training or evaluation. See `load_rewards`.

    Attributes:
        names, weights: of the R rewards, in the order of the columns of scores.
        max_missing: the largest share of an epoch's scores that one reward may miss.
    """

    def __init__(self, judges: Sequence[Judge], accelerator: Accelerator, max_missing: float = 0.5):
        self.judges, self.accelerator, self.max_missing = tuple(judges), accelerator, max_missing
        self.names = tuple(j.name for j in judges)
        self.weights = tuple(j.config.weight for j in judges)
        if twice := [name for name, count in Counter(self.names).items() if count > 1]:
            raise UserError(f"two rewards are named {twice[0]!r}; give each its own name")
        self._forget()

    @property
    def groupwise(self) -> bool:
        """Whether any reward sees a group at a time."""
        return any(isinstance(judge.model, GroupwiseRewardModel) for judge in self.judges)

    def _forget(self) -> None:
        self._asked: Counter[str] = Counter()
        self._missing: Counter[str] = Counter()
        self._seconds = dict.fromkeys(self.names, 0.0)
        self._cause: dict[str, str] = {}

    def check_columns(self, rows: Sequence[Row]) -> None:
        """See `require_columns`: to be called when the data set is read."""
        for judge in self.judges:
            require_columns(judge.name, judge.model.required_fields, rows)

    @torch.no_grad()
    def score(self, rows: Sequence[Row], media: Sequence[Sequence[Any]]) -> list[Tensor]:
        """Scores of whole groups: for each row an (n, R) float32 tensor on the CPU, NaN where a score is missing.

        Args:
            rows: one a group. Their condition files are opened for the rewards that take them.
            media: each group's n images or videos.

        Raises:
            RewardError: a reward raised, or returned something else than one score a sample.
            UserError: a reward does not score this kind of media, lacks a condition that it requires, or a condition file is damaged.
        """
        groups = []
        for row, group in zip(rows, media, strict=True):
            negative = {} if row.negative_prompt is None else {"negative_prompt": row.negative_prompt}
            fields = {**row.columns, **negative, "prompt": row.prompt}
            groups.append([Sample(row, one, fields) for one in group])
        columns = [self._column(judge, groups) for judge in self.judges] if groups else []
        table = torch.stack(columns, dim=1) if columns else torch.empty(sum(map(len, groups)), 0)
        return list(table.split([len(group) for group in groups])) if groups else []

    def _column(self, judge: Judge, groups: Sequence[list[Sample]]) -> Tensor:
        start, size = time.perf_counter(), judge.config.batch_size
        samples = [sample for group in groups for sample in group]
        pointwise = isinstance(judge.model, PointwiseRewardModel)
        batches = [samples[k : k + size] for k in range(0, len(samples), size)] if pointwise else groups
        scores = torch.cat([self._call(judge, batch) for batch in batches])
        self._seconds[judge.name] += time.perf_counter() - start
        self._asked[judge.name] += len(samples)
        self._missing[judge.name] += int(scores.isnan().sum())
        return scores

    def _call(self, judge: Judge, batch: Sequence[Sample]) -> Tensor:
        arguments = _arguments(judge, batch)
        with _named(judge, batch):
            output = judge.model(**arguments)
            returned = output.rewards if isinstance(output, RewardModelOutput) else output
            scores = _scores(returned)
        if scores.shape != (len(batch),):
            raise RewardError(f"reward {judge.name!r} returned scores of shape {tuple(scores.shape)} for {len(batch)} samples")
        if isinstance(output, RewardModelOutput) and output.extra_info and output.extra_info.get("error"):
            self._cause[judge.name] = str(output.extra_info["error"])
        return scores

    def finish_epoch(self) -> dict[str, float]:
        """Missing scores and seconds of each reward since the last call, over all processes (so all must call); then counts from 0.

        Returns:
            `missing/<name>`, a count, and `seconds/<name>`, the mean over processes.

        Raises:
            RewardError: a reward missed more than `max_missing` of its scores.
        """
        local = [[self._asked[n], self._missing[n], self._seconds[n]] for n in self.names]
        total = self.accelerator.reduce(torch.tensor(local, dtype=torch.float32, device=self.accelerator.device), reduction="sum")
        causes = self._cause
        self._forget()
        report: dict[str, float] = {}
        for name, (asked, missing, seconds) in zip(self.names, total.tolist(), strict=True):
            if missing > self.max_missing * asked:
                cause = f"; it said last: {causes[name]}" if name in causes else ""
                raise RewardError(
                    f"reward {name!r} gave no score for {missing:.0f} of {asked:.0f} samples; "
                    f"at most {self.max_missing:.0%} may be missing{cause}"
                )
            report |= {f"missing/{name}": missing, f"seconds/{name}": seconds / self.accelerator.num_processes}
        return report


@contextmanager
def _named(judge: Judge, batch: Sequence[Sample]) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        rows = ", ".join(str(k) for k in sorted({s.row.id for s in batch}))
        raise RewardError(f"reward {judge.name!r} failed on {len(batch)} samples of row {rows}: {type(error).__name__}: {error}") from error


def _scores(returned: Any) -> Tensor:
    """float32 on the CPU; whatever is not finite is NaN."""
    if isinstance(returned, Tensor):
        scores = returned.detach().to("cpu", torch.float32)
    else:
        scores = torch.tensor([math.nan if r is None else float(r) for r in returned], dtype=torch.float32)
    return scores.where(scores.isfinite(), torch.nan)


def _arguments(judge: Judge, batch: Sequence[Sample]) -> dict[str, list[Any]]:
    """What the reward is called with: media, conditions and columns that it takes, as lists of n."""
    model, kind = judge.model, kind_of(batch[0].media)
    scored = [m for m in MEDIA if m in model.required_fields]
    if scored and kind not in scored:
        raise UserError(f"reward {judge.name!r} scores {' or '.join(scored)}, and the model makes {kind}s")
    device = model.device if model.use_tensor_inputs else None
    arguments: dict[str, list[Any]] = {}
    for name in dict.fromkeys(name for sample in batch for name in sample.fields if name not in (*MEDIA, *CONDITIONS)):
        if judge.takes(name):
            arguments[name] = [sample.fields.get(name) for sample in batch]
    if judge.takes(kind):
        arguments[kind] = [convert(sample.media, device) for sample in batch]
    for name, opened in CONDITIONS.items():
        conditions = [opened(sample.row) for sample in batch] if judge.takes(name) else []
        if any(conditions):
            arguments[name] = [convert_conditions(c, device) for c in conditions]
        elif name in model.required_fields:
            raise UserError(f"reward {judge.name!r} needs {name.replace('_', ' ')}, and row {batch[0].row.id} has none")
    return arguments
