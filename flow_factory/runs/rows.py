"""The rows of a run: reading, and checks against the model family before anything heavy."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from flow_factory.config import (
    RunConfig,
    pipeline_kwargs,
)
from flow_factory.config.data import ALONE, OURS, PAIR, TARGET
from flow_factory.config.datasets import Dataset, datasets_of, trained_on
from flow_factory.data.encoding_windows import order_of, rows_needed, rows_tested
from flow_factory.data.given import given_files, has_media, require_frames
from flow_factory.data.inputs import check_agreement, condition_files
from flow_factory.data.inspection import Record, inspect_files
from flow_factory.data.media_checks import Extent, Kind, require_there
from flow_factory.data.reader import RowCheck
from flow_factory.data.several import Named, joined, sizes_of
from flow_factory.data.sources import has_split, open_split
from flow_factory.data.v2 import SIDES
from flow_factory.models import MODELS
from flow_factory.models.base import ModelAdapter
from flow_factory.models.diffusers import Diffusers
from flow_factory.rewards.loading import left_out
from flow_factory.rewards.needs import Needs
from flow_factory.types import Row
from flow_factory.utils.errors import UserError

LEARNS = {(): "draws its own samples", PAIR: "learns from preferences", TARGET: "learns from demonstrations"}
OTHERWISE = {
    "demonstration": "lines with a prompt, or trainer_type: sft",
    "preference": "lines with a prompt, or offline: true with trainer_type: dpo",
}
"""What a line shows -> what would be right where that cannot be learnt from."""
Tests = Mapping[str, Sequence[Row]]
"""Test rows, by the name of their data set."""


def read_training(config: RunConfig, checks: Callable[[Dataset], Iterable[RowCheck]]) -> Sequence[Row]:
    """The training rows of all data sets, one data set after the other; see `open_split`.

    Args:
        checks: returns the checks of a data set's rows.
    """
    found, first = list[Sequence[Row]](), 0
    for dataset in trained_on(config):
        data = dataset.config.data
        with with_own_keys(dataset):
            rows = open_split(data, data.train_split, data.max_dataset_size, checks(dataset))
        found.append(Named(rows, dataset.name, first) if dataset.name else rows)
        first += len(rows)
    return joined(found)


def read_tests(config: RunConfig, checks: Callable[[Dataset], Iterable[RowCheck]]) -> dict[str, Sequence[Row]]:
    """The test rows of the data sets that are evaluated, by name."""
    found = dict[str, Sequence[Row]]()
    for dataset in datasets_of(config):
        data = dataset.config.data
        if dataset.evaluated is False or (dataset.evaluated is None and not has_split(data, data.test_split)):
            continue
        with with_own_keys(dataset):
            rows = open_split(data, data.test_split, dataset.most_tested, checks(dataset))
        found[dataset.name] = Named(rows, dataset.name) if dataset.name else rows
    return found


def repeats(config: RunConfig, sizes: Sequence[int]) -> Iterator[str]:
    """A line for each data set that has fewer rows than an epoch draws of it."""
    order = order_of(config, sizes)
    for stream in order.streams:
        largest = max(stream.begins(epoch + 1) - stream.begins(epoch) for epoch in range(8))
        if largest > stream.num_rows:
            of = f" of {stream.name}, of which an epoch draws {largest}" * bool(stream.name)
            yield (
                f"train.unique_sample_num_per_epoch: {order.rows_per_epoch} is more than the {stream.num_rows} rows that there are{of}: "
                "rows repeat in an epoch"
            )


@contextmanager
def with_own_keys(dataset: Dataset) -> Iterator[None]:
    """Messages name this data set, and its own keys instead of those of `data:`."""
    try:
        yield
    except UserError as error:
        theirs = {"train_split": "train.split", "test_split": "eval.split"}
        own = re.compile(rf"\bdata\.({'|'.join(ALONE)})\b")
        message = own.sub(lambda key: f"{dataset.key}.{theirs.get(key[1], key[1])}", str(error))
        if not dataset.name:
            raise
        raise type(error)(message if dataset.key in message else f"{dataset.key}: {message}") from error


def row_checks(config: RunConfig, needs: Iterable[Needs], trained: bool, share: tuple[int, int] = (0, 1)) -> list[RowCheck]:
    """What every row of a split is asked while it is read.

    Args:
        needs: of the rewards that will see the rows.
        trained: whether rows are trained on; then they must bring what is learnt from, where that is given, and else they may.
        share: (k, n): the k-th of n processes, which share out by rows the question whether files are there.

    Returns:
        Functions that raise `UserError` where a row has not the condition images or videos that the family takes, a column that a reward
        needs, its given media, or one of its files; or where only some rows have a negative prompt, see `SomeNegatives`.
    """
    family = MODELS[config.model.model_type]
    found: list[RowCheck] = [family.check_row, *(needed.require_columns for needed in needs if needed.of_rows)]
    if issubclass(family, Diffusers) and config.engine.shards_weights and config.num_processes > 1:
        found.append(SomeNegatives())

    def learns(row: Row) -> None:
        if row.shows is not None and SIDES[row.shows] != config.train.given:
            own, right = LEARNS[config.train.given], OTHERWISE[row.shows]
            raise UserError(f"{row.source}: a {row.shows}, and {config.train.trainer_type} {own}; write {right}")

    def look(row: Row) -> None:
        its = files_of(config, row, trained) if not row.inside else ()  # those of a table are there
        for path, kind in its if row.id % share[1] == share[0] else ():
            require_there(path, row.source, kind)

    found.append(learns)
    return [*found, look] if takes_files(config) else found


def check_files(
    config: RunConfig, train: Sequence[Row], tests: Tests, progress: bool = True, share: tuple[int, int] = (0, 1)
) -> dict[str, Extent]:
    """Decodes every file of the rows that the run draws once. The result is stored in the cache's folder until the file changes.

    Args:
        share: (k, n): this is the k-th of n processes, which divide the decoding by rows. All processes read headers.

    Returns:
        The sizes of the decoded files: those of every n-th row.

    Raises:
        UserError: a file cannot be used.
    """
    if not takes_files(config):
        return {}
    files, mine = dict[tuple[str, Kind], str](), list[tuple[str, Kind]]()
    for number, (alone, row, trained) in enumerate(drawn(config, train, tests)):
        for file in (its := files_of(alone, row, trained)):
            files.setdefault(file, row.source)
        mine += its if number % share[1] == share[0] else ()
    return inspect_files(files, Record(Path(config.data.cache_dir) / "media.jsonl"), mine, progress) if files else {}


def drawn(config: RunConfig, train: Sequence[Row], tests: Tests) -> Iterator[tuple[RunConfig, Row, bool]]:
    """The rows that the run needs, with the config restricted to their data set, and whether they are trained on."""
    alone = {dataset.name: dataset.config for dataset in datasets_of(config)}
    for row in (train[k] for k in rows_needed(config, sizes_of(train))):
        yield alone[row.dataset], row, True
    for name, rows in tests.items():
        yield from ((alone[name], rows[k], False) for k in rows_tested(alone[name], len(rows)))


def takes_files(config: RunConfig) -> bool:
    """Whether rows may have files."""
    family = MODELS[config.model.model_type]
    named = any(set(dataset.config.data.columns) - set(OURS) for dataset in datasets_of(config))
    return bool(family.images[1] or family.videos[1] or config.train.given or named)


def files_of(config: RunConfig, row: Row, trained: bool) -> list[tuple[str, Kind]]:
    """The row's condition files, and its media, which a training row must have and a test row may have."""
    kind = MODELS[config.model.model_type].draws
    return [*condition_files(row), *((str(path), kind) for path in learnt_files(config, row, trained))]


def learnt_files(config: RunConfig, row: Row, trained: bool) -> list[Path]:
    """Only the media that are trained on, see `files_of`."""
    columns, kind = config.train.given, MODELS[config.model.model_type].draws
    return given_files(config.data, row, columns, kind == "video") if trained or has_media(row, columns) else []


def check_limits(config: RunConfig, sketch: ModelAdapter, train: Sequence[Row], tests: Tests, sizes: Mapping[str, Extent]) -> None:
    """Checks the family's limits for the rows that the run draws, as far as the sizes of their files are known.

    Raises:
        UserError: the checkpoint cannot use a row's condition files, by their number or size.
    """
    for alone, row, trained in drawn(config, train, tests) if sizes else ():
        call = pipeline_kwargs(config.train if trained else alone.eval)
        if sizes.keys() >= {path for path, _ in condition_files(row)}:
            check_agreement(row, sizes)
            sketch.check_conditions(row, sizes, call)
        if sketch.draws == "video":
            wanted = sizes[row.videos[0]][2] if row.videos and row.videos[0] in sizes else sketch.frames(call)
            for clip in map(str, learnt_files(alone, row, trained)):
                require_frames(row, sizes[clip][2] if clip in sizes else wanted, wanted)


class SomeNegatives:
    """A check for engines with collective forwards: an unknown pipeline may call its transformer once more for a row with a negative
    prompt. It is called with each row.

    Raises:
        UserError: some rows have a negative prompt, and others have none.
    """

    def __init__(self) -> None:
        self.has = False
        self.without: Row | None = None

    def __call__(self, row: Row) -> None:
        self.has |= row.negative_prompt is not None
        self.without = self.without or (row if row.negative_prompt is None else None)
        if self.has and self.without is not None:
            raise UserError(
                f"{self.without.source}: no negative_prompt, but other rows have one; processes that shard weights must make equal calls "
                'at the same time; give every row one ("" counts), or none'
            )


def max_group(config: RunConfig, tests: Tests) -> int:
    """The largest number of samples of a row in an evaluation of any data set."""
    return max((d.config.eval.group_size for d in datasets_of(config) if d.name in tests), default=config.eval.group_size)


def groups_left_out(config: RunConfig, tests: Tests) -> list[str]:
    """Lines about groupwise rewards that are left out of evaluations without groups."""
    alone = [(d.key, d.config) for d in datasets_of(config) if d.name in tests and d.config.eval.group_size == 1]
    return [line if key == "data" else f"{key}: {line}" for key, config in alone for line in left_out(config.evaluated_by)]
