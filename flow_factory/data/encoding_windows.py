"""When each row is encoded. All functions are pure: they depend on the config and the sizes of the data sets only."""

from collections.abc import Sequence
from typing import Literal

from flow_factory.config import RunConfig
from flow_factory.config.datasets import trained_on
from flow_factory.data.order import Order, some_rows

FEW = 1024
"""`data.encode: auto` encodes up to this many rows before a run begins: minutes on a GPU, and 4 GB of embeddings for FLUX.1."""
WINDOW = 256
"""Approximate rows of a window: encoding them takes as long as moving 10 GB of encoders to a GPU."""


Idle = Literal["keep", "offload", "drop"]
"""Where encoders are between encodings: on the device ("keep"), in main memory ("offload"), or unloaded and loaded again ("drop")."""


def in_windows(config: RunConfig) -> bool:
    """Whether rows are encoded window by window during the run. `data.encode: auto` must be resolved before."""
    return config.data.enable_preprocess and config.data.encode == "window"


def idle_of(config: RunConfig) -> Idle:
    """Where the text encoders are between encodings. `data.encode: auto` must be resolved before."""
    if not config.data.enable_preprocess:
        return "keep"
    requested = config.data.idle_encoders
    return requested if in_windows(config) and requested != "auto" else "drop"


def order_of(config: RunConfig, sizes: Sequence[int]) -> Order:
    """Which training rows each epoch draws. For offline algorithms (sft, offline DPO) all data sets count as one.

    Args:
        sizes: the number of rows of each training data set, here and below.
    """
    train, datasets = config.train, trained_on(config)
    rows, seed = train.unique_sample_num_per_epoch, train.seed
    if len(datasets) == 1 or train.given:
        return Order((sum(sizes),), rows, seed)
    return Order(tuple(sizes), rows, seed, tuple(d.weight for d in datasets), tuple(d.name for d in datasets))


def is_short(config: RunConfig, sizes: Sequence[int]) -> bool:
    """Whether all rows that a run draws are encoded before it begins: they are few, or compilation needs their shapes."""
    return len(rows_needed(config, sizes)) <= FEW or (config.model.compile and config.train.max_epochs is not None)


def rows_needed(config: RunConfig, sizes: Sequence[int]) -> Sequence[int]:
    """The training rows whose conditions a run needs: those of its epochs, and row 0, which the checks at the start use."""
    train = config.train
    if train.max_epochs is None:
        return range(sum(sizes))
    return sorted({0, *order_of(config, sizes).drawn(train.max_epochs)})


def window_epochs(config: RunConfig) -> int:
    """The number of epochs of a window."""
    return config.data.encode_epochs or max(1, WINDOW // config.train.unique_sample_num_per_epoch)


def window_of(config: RunConfig, epoch: int) -> range:
    """The epochs from this one to the end of its window or of the run. Windows do not depend on where a run was resumed."""
    size, last = window_epochs(config), config.train.max_epochs
    end = (epoch // size + 1) * size
    return range(epoch, end if last is None else min(end, last))


def rows_of_start(config: RunConfig, sizes: Sequence[int], epoch: int) -> Sequence[int]:
    """The training rows that are encoded before a run begins, or is resumed, with this epoch."""
    if not config.data.enable_preprocess:
        return ()
    return sorted({0, *rows_of_window(config, sizes, epoch)}) if in_windows(config) else rows_needed(config, sizes)


def rows_of_window(config: RunConfig, sizes: Sequence[int], epoch: int) -> Sequence[int]:
    """The training rows that are drawn from this epoch to the end of its window."""
    order = order_of(config, sizes)
    return sorted({group.row for e in window_of(config, epoch) for group in order.epoch(e)})


def rows_evaluated(config: RunConfig, rows: int) -> Sequence[int]:
    """The test rows of a periodic evaluation of one data set.

    Args:
        config: the config of this data set, here and below.
        rows: how many test rows there are.
    """
    return some_rows(rows, config.eval.max_rows, config.eval_seed)


def rows_tested(config: RunConfig, rows: int) -> Sequence[int]:
    """The test rows of all evaluations: with `eval.full_at_end` the last one takes all rows."""
    full = config.eval.full_at_end and config.train.max_epochs is not None
    return range(rows) if full else rows_evaluated(config, rows)


def evaluated(config: RunConfig, rows: int) -> Sequence[int]:
    """The test rows that are encoded before a run begins."""
    return rows_tested(config, rows) if config.eval.eval_freq and config.data.enable_preprocess else ()
