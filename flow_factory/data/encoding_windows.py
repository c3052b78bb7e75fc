"""When each row is encoded: a pure function of the config and the number of rows of each data set."""

from collections.abc import Sequence
from typing import Literal

from flow_factory.config import RunConfig
from flow_factory.config.datasets import trained_on
from flow_factory.data.order import Order, some_rows

FEW = 1024
"""Rows that `data.encode: auto` encodes before a run begins: minutes of a GPU, and 4 GB of FLUX.1's."""
WINDOW = 256
"""Rows of a window, about: bringing 10 GB of encoders to a GPU takes as long as encoding them."""


Idle = Literal["keep", "offload", "drop"]
"""Where encoders are while no row is encoded: on the device; in main memory, as they were loaded; nowhere, and they are loaded again."""


def in_windows(config: RunConfig) -> bool:
    """Whether rows are encoded as the run comes to them; `auto` is to be decided before."""
    return config.data.enable_preprocess and config.data.encode == "window"


def idle_of(config: RunConfig) -> Idle:
    """Where the text encoders are while no row is encoded; `auto` is to be decided before."""
    if not config.data.enable_preprocess:
        return "keep"
    asked = config.data.idle_encoders
    return asked if in_windows(config) and asked != "auto" else "drop"


def order_of(config: RunConfig, sizes: Sequence[int]) -> Order:
    """Which training rows the epochs draw; where rows bring what is learned from, all data sets are one.

    Args:
        sizes: how many rows each data set that is trained on has, here and below.
    """
    train, datasets = config.train, trained_on(config)
    rows, seed = train.unique_sample_num_per_epoch, train.seed
    if len(datasets) == 1 or train.given:
        return Order((sum(sizes),), rows, seed)
    return Order(tuple(sizes), rows, seed, tuple(d.weight for d in datasets), tuple(d.name for d in datasets))


def is_short(config: RunConfig, sizes: Sequence[int]) -> bool:
    """Whether a run draws so few of its rows that it can wait for all of them; or has to, to know what shapes are compiled for."""
    return len(rows_needed(config, sizes)) <= FEW or (config.model.compile and config.train.max_epochs is not None)


def rows_needed(config: RunConfig, sizes: Sequence[int]) -> Sequence[int]:
    """The training rows whose conditions a run needs: those of the run's epochs, and the first, which is asked for proofs at a start."""
    train = config.train
    if train.max_epochs is None:
        return range(sum(sizes))
    return sorted({0, *order_of(config, sizes).drawn(train.max_epochs)})


def window_epochs(config: RunConfig) -> int:
    """Epochs of a window."""
    return config.data.encode_epochs or max(1, WINDOW // config.train.unique_sample_num_per_epoch)


def window_of(config: RunConfig, epoch: int) -> range:
    """The epochs, from this one on, until the next window begins, or the run ends: the same windows wherever a run goes on."""
    size, last = window_epochs(config), config.train.max_epochs
    end = (epoch // size + 1) * size
    return range(epoch, end if last is None else min(end, last))


def rows_of_start(config: RunConfig, sizes: Sequence[int], epoch: int) -> Sequence[int]:
    """The training rows that are encoded before a run begins, or goes on, with this epoch."""
    if not config.data.enable_preprocess:
        return ()
    return sorted({0, *rows_of_window(config, sizes, epoch)}) if in_windows(config) else rows_needed(config, sizes)


def rows_of_window(config: RunConfig, sizes: Sequence[int], epoch: int) -> Sequence[int]:
    """Those that are drawn from this epoch on until the next window begins."""
    order = order_of(config, sizes)
    return sorted({group.row for e in window_of(config, epoch) for group in order.epoch(e)})


def rows_evaluated(config: RunConfig, rows: int) -> Sequence[int]:
    """The test rows of every evaluation of a data set, whose config this is."""
    return some_rows(rows, config.eval.max_rows, config.eval_seed)


def rows_tested(config: RunConfig, rows: int) -> Sequence[int]:
    """The test rows of all evaluations: the one at the end may take all."""
    full = config.eval.full_at_end and config.train.max_epochs is not None
    return range(rows) if full else rows_evaluated(config, rows)


def evaluated(config: RunConfig, rows: int) -> Sequence[int]:
    """The test rows that are encoded before a run begins: those that it evaluates."""
    return rows_tested(config, rows) if config.eval.eval_freq and config.data.enable_preprocess else ()
